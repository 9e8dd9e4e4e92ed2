"""A recalled picture names the LoRAs that are missing or other files here; it never takes another one in silence."""

from pathlib import Path

import pytest
from PIL import Image

from studio.config import GenerateConfig, TrainConfig, build
from studio.events import Checkpoint
from studio.generation import files
from studio.generation.infotext import Model, Used
from studio.jobs.folder import EventWriter, JobFolder
from studio.workspace import Workspace
from tests.workspace.test_library import lora


@pytest.fixture
def studio(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "data")


def picture(folder: Path, name: str, hash: str, **values: object) -> Path:
    config = build(GenerateConfig, {"prompt": "cat", "seed": 3, "loras": [{"name": name, "weight": 0.7}], **values})
    path = folder / "drawn.png"
    files.save(Image.new("RGB", (64, 64)), path, config, [Used(name, 0.7, hash)], Model("demo-sdxl"))
    return path


def test_the_same_file_is_known_whatever_it_is_called_here(studio: Workspace, tmp_path: Path) -> None:
    ink = studio.library.add(lora(tmp_path / "ink.safetensors"))
    for name in ("ink", "an-old-name"):
        found = studio.gallery.recalled(picture(tmp_path, name, ink.autov3))
        assert (found.settings["loras"][0]["name"], found.settings["loras"][0]["weight"]) == ("ink", 0.7)
        assert found.troubles == found.changed == ()


def test_another_file_of_that_name_is_named_by_both_hashes(studio: Workspace, tmp_path: Path) -> None:
    here = studio.library.add(lora(tmp_path / "ink.safetensors"))
    found = studio.gallery.recalled(picture(tmp_path, "ink", "ab" * 32))
    assert found.changed == ("ink",) and "another file here" in found.troubles[0]
    assert here.autov3[:12] in found.troubles[0] and "abababababab" in found.troubles[0]


def test_a_missing_file_and_a_missing_picture_are_named(studio: Workspace, tmp_path: Path) -> None:
    start = "0" * 32 + ".png"
    found = studio.gallery.recalled(picture(tmp_path, "wash", "cd" * 32, init_image=start))
    assert found.changed == ("wash",) and found.settings["loras"][0]["name"] == "wash"
    assert "LoRA wash (hash cdcdcdcdcdcd) is not in the library" in found.troubles[0] and start in found.troubles[1]
    assert studio.gallery.recalled(picture(tmp_path, "wash", "")).troubles[0].endswith("which file it was")


def test_a_checkpoint_of_a_run_is_what_it_was_unless_its_name_may_mean_two(studio: Workspace, tmp_path: Path) -> None:
    runs = []
    for step in (20, 20, 40):
        run = studio.jobs.train(build(TrainConfig, {"images": "blueprint", "name": "fox"}))
        folder = JobFolder.of(studio.layout.jobs, run.id)
        (folder.path / "a.safetensors").write_bytes(b"-")
        writer = EventWriter(folder.events_file)
        writer.append(Checkpoint(step=step, path="checkpoints/a", adapter="a.safetensors", bytes=1, sha256="0" * 64))
        writer.close()
        runs.append(run.id)
    whole = studio.gallery.recalled(picture(tmp_path, "fox@40", ""))
    assert whole.settings["loras"][0]["name"] == "fox@40" and whole.troubles == whole.changed == ()
    assert studio.gallery.recalled(picture(tmp_path, f"{runs[0]}@20", "")).changed == ()
    double = studio.gallery.recalled(picture(tmp_path, "fox@20", ""))
    assert double.changed == ("fox@20",) and "2 runs are called fox" in double.troubles[0]
    for gone in ("fox@30", "cat@20", "fox@live"):
        assert "is not in the library" in studio.gallery.recalled(picture(tmp_path, gone, "")).troubles[0]
