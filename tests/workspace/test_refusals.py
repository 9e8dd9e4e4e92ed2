"""What cannot work is refused in one line before any job exists."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from studio.config import GenerateConfig, TrainConfig, build
from studio.errors import BaseError, FormatError, ImageError, InputError, NotFound, RunError, SettingsError
from studio.workspace import Workspace
from tests.jobs.conftest import draw_pictures


@pytest.fixture
def studio(tmp_path: Path) -> Workspace:
    workspace = Workspace.open(tmp_path / "data")
    workspace.sets.import_folder("Circles", draw_pictures(tmp_path / "circles"))
    return workspace


def flux_lora(path: Path) -> Path:
    stem = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {"lora_down.weight": torch.zeros(2, 64), "lora_up.weight": torch.zeros(64, 2), "alpha": torch.tensor(2.0)}
    save_file({f"{stem}.{name}": tensor for name, tensor in tensors.items()}, path)
    return path


def train(**values: object) -> Callable[[Workspace, Path], object]:
    return lambda studio, folder: studio.jobs.train(build(TrainConfig, {"images": "Circles", **values}))


CASES: list[tuple[str, Callable[[Workspace, Path], object], type[InputError], str]] = [
    ("base", train(base="nothing"), BaseError, "not known"),
    ("base that is a LoRA", lambda s, p: s.jobs.train(TrainConfig(images="Circles", base=str(flux_lora(p / "x.safetensors")))), BaseError, "is a LoRA"),
    ("set", train(images="nowhere"), ImageError, "neither a set"),
    ("empty folder", lambda s, p: s.jobs.train(TrainConfig(images=str(p / "empty"))), ImageError, "no picture"),
    ("setting", train(stepz=5), SettingsError, "did you mean 'steps'"),
    ("value", train(rank=0), SettingsError, "rank"),
    ("output suffix", train(output="/tmp/x.bin"), InputError, "must end in .safetensors"),
    ("output place", train(output="/proc/nothing/x.safetensors"), InputError, "cannot be written"),
    ("start_from", train(start_from="nobody"), NotFound, "nobody"),
    (
        "start_from another family",
        lambda s, p: s.jobs.train(TrainConfig(images="Circles", start_from=str(flux_lora(p / "f.safetensors")))),
        FormatError,
        "choose",
    ),
    ("lora", lambda s, p: s.jobs.generate(GenerateConfig(loras=("nobody",))), NotFound, "nobody"),  # type: ignore[arg-type]
    ("lora of another family", lambda s, p: s.jobs.generate(build(GenerateConfig, {"loras": [str(flux_lora(p / "f.safetensors"))]})), FormatError, "choose"),
    ("path in a prompt", lambda s, p: s.jobs.generate(GenerateConfig(prompt=f"<lora:{flux_lora(p / 'f.safetensors')}:1>")), NotFound, "neither"),
    ("size", lambda s, p: s.jobs.generate(GenerateConfig(width=130)), InputError, "multiples of"),
    ("export", lambda s, p: s.jobs.export("nobody"), NotFound, "nobody"),
]


@pytest.mark.parametrize(("act", "error", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_one_line_and_leaves_nothing(
    studio: Workspace, tmp_path: Path, act: Callable[[Workspace, Path], object], error: type[InputError], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=words) as caught:
        act(studio, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(studio.layout.jobs.iterdir()) and studio.jobs.list() == []


def test_what_a_queued_job_needs_cannot_be_deleted(studio: Workspace) -> None:
    job = studio.jobs.train(TrainConfig(images="Circles"))
    with pytest.raises(RunError, match="is used by the queued job"):
        studio.sets.remove("Circles")
    studio.jobs.cancel(job.id)
    studio.sets.remove("Circles")


def test_defaults_come_from_the_base_then_the_family_and_are_recorded(studio: Workspace) -> None:
    job = studio.jobs.train(TrainConfig(images="Circles", rank=3))
    given, resolved = job.config, job.settings
    assert given["learning_rate"] is None and given["seed"] == -1
    assert (resolved["learning_rate"], resolved["alpha"], resolved["resolution"]) == (2e-3, 3.0, 128) and resolved["seed"] >= 0
    epochs = studio.jobs.train(TrainConfig(images="Circles", epochs=3))
    assert epochs.settings["steps"] is None
    again = studio.jobs.retry(job.id)
    assert again.id != job.id and again.settings == resolved
