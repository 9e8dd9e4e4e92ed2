"""Adapters and pictures as the workspace keeps them."""

import json
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from studio.errors import FormatError, InputError, NotFound
from studio.events import Image as ImageEvent
from studio.library import pictures, trash
from studio.workspace import Workspace


@pytest.fixture
def studio(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "data")


def lora(path: Path, rank: int = 4, fill: float = 0.5) -> Path:
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    tensors = {"lora_down.weight": torch.full((rank, 64), fill), "lora_up.weight": torch.zeros(64, rank), "alpha": torch.tensor(2.0)}
    words = {"ss_network_alpha": "2.0", "ss_sd_model_name": "some-base", "modelspec.trigger_phrase": "zqx"}
    save_file({f"{stem}.{name}": tensor for name, tensor in tensors.items()}, path, words)
    return path


def test_a_file_is_read_by_its_header_and_the_same_one_is_kept_once(studio: Workspace, tmp_path: Path) -> None:
    row = studio.library.add(lora(tmp_path / "My Löra.safetensors"))
    assert (row.name, row.family, row.rank, row.alpha, row.trigger, row.base) == ("My-L-ra", "sdxl", 4, 2.0, "zqx", "some-base")
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((tmp_path / "My Löra.safetensors").read_bytes())  # saving again may order the metadata in another way
    assert studio.library.add(copy).id == row.id
    other = studio.library.add(lora(tmp_path / "my-l-ra.safetensors", fill=0.1))
    assert other.name == "my-l-ra-2" and len(studio.library.list()) == 2
    assert [found.id for found in studio.library.list("L-RA zqx", "sdxl")] == [other.id, row.id]
    assert studio.library.list("100%") == [] and [r.id for r in studio.library.list(before=other.id)] == [row.id]
    assert studio.library.find(row.name).read_bytes() == (tmp_path / "My Löra.safetensors").read_bytes()


def test_deleting_can_be_undone_even_when_the_name_was_taken(studio: Workspace, tmp_path: Path) -> None:
    row = studio.library.add(lora(tmp_path / "a.safetensors"))
    token = studio.library.remove("a")
    with pytest.raises(NotFound):
        studio.library.show("a")
    studio.library.add(lora(tmp_path / "a.safetensors", rank=2))
    back = studio.library.restore(token)
    assert (back.id, back.name, back.rank) == (row.id, "a-2", 4)
    assert studio.library.find("a-2").is_file() and studio.library.show("a").rank == 2


def test_renaming_moves_the_file_that_prompts_find(studio: Workspace, tmp_path: Path) -> None:
    studio.library.add(lora(tmp_path / "a.safetensors"))
    assert studio.library.rename("a", "better name").name == "better-name"
    assert studio.library.find("better-name").name == "better-name.safetensors"


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x10\0\0\0\0\0\0\0{}"])
def test_what_is_no_lora_is_refused(studio: Workspace, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(FormatError):
        studio.library.add(tmp_path / "x.safetensors")
    assert studio.library.list() == [] and not list(studio.layout.adapters.iterdir())


def drawn(studio: Workspace, index: int = 0, settings: dict[str, object] | None = None) -> str:
    folder = studio.layout.jobs / "job1" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    values = settings or {"prompt": "a cat", "seed": 3 + index}
    words = PngInfo()
    words.add_text("parameters", "a cat\nSteps: 4, Sampler: Euler, CFG scale: 4.0, Seed: 3, Size: 64x64")
    Image.new("RGB", (96, 64)).save(folder / f"{index:04}.png", pnginfo=words)
    event = ImageEvent(path=f"images/{index:04}.png", index=index, seed=3 + index, settings=values, time=time.time() + index)
    return pictures.register(studio._db, studio.layout, "job1", 1, event).id


def test_pictures_are_listed_newest_first_by_pages_and_taken_in_once(studio: Workspace) -> None:
    ids = [drawn(studio, i) for i in range(5)]
    assert drawn(studio, 0) == ids[0]
    page = studio.gallery.list(limit=3)
    assert [row.id for row in page] == ids[:1:-1] and [row.id for row in studio.gallery.list(before=page[-1].id)] == ids[1::-1]
    assert (page[0].width, page[0].height, page[0].prompt) == (96, 64, "a cat")
    assert Image.open(studio.gallery.thumbnail(ids[0], 64)).size == (64, 43)


def test_settings_come_back_from_the_gallery_and_from_a_file(studio: Workspace) -> None:
    id = drawn(studio)
    assert studio.gallery.recall(id).seed == 3
    found = studio.gallery.recall(studio.gallery.path(id).read_bytes())
    assert (found.prompt, found.seed, found.steps) == ("a cat", 3, 4)


def test_a_deleted_picture_comes_back_and_is_gone_for_good_after_its_time(studio: Workspace) -> None:
    id = drawn(studio)
    path, own = studio.gallery.path(id), studio.layout.jobs / "job1" / "images" / "0000.png"
    token = studio.gallery.remove(id)
    assert not path.exists() and studio.gallery.list() == []
    assert studio.gallery.restore(token).id == id and path.exists()
    with pytest.raises(InputError):
        studio.library.restore(studio.gallery.remove(id))
    trash.settle(studio._db, studio.layout, keep_seconds=3600)
    assert own.exists() and list(studio.layout.trash.iterdir())
    trash.settle(studio._db, studio.layout, keep_seconds=-1)
    assert not own.exists() and not list(studio.layout.trash.iterdir())


def test_a_removal_cut_short_is_finished_or_forgotten(studio: Workspace, tmp_path: Path) -> None:
    row = studio.library.add(lora(tmp_path / "a.safetensors"))
    home = studio.layout.trash / "cut"
    home.mkdir()
    note = {"kind": "adapter", "key": row.id, "values": {}, "path": f"adapters/{row.id}", "removed": time.time()}
    (home / "item.json").write_text(json.dumps(note))
    trash.settle(studio._db, studio.layout)
    assert studio.library.find("a").is_file() and not home.exists()  # nothing had moved

    home.mkdir()
    (home / "item.json").write_text(json.dumps(note))
    (studio.layout.adapters / row.id).rename(home / "content")
    trash.settle(studio._db, studio.layout)
    assert studio.library.list() == [] and (home / "content").is_dir()  # the file had moved: the row follows


def test_what_a_side_file_says_is_kept_with_the_lora_and_another_files_is_not(studio: Workspace, tmp_path: Path) -> None:
    one = lora(tmp_path / "ink.safetensors")
    (tmp_path / "ink.civitai.info").write_text(json.dumps({"id": 42, "modelId": 7, "trainedWords": ["other"]}))
    row = studio.library.add(one)
    assert row.trigger == "zqx", "the file's own word comes first"
    assert studio.library.inspect(studio.library.path(row.id))["civitai"] == 42
    assert studio.library.inspect(studio.library.path(studio.library.rename(row.id, "renamed").id))["civitai"] == 42
    other = lora(tmp_path / "wash.safetensors", fill=0.1)
    foreign = {"id": 43, "modelId": 7, "files": [{"hashes": {"SHA256": row.sha256}}]}
    (tmp_path / "wash.civitai.info").write_text(json.dumps(foreign))
    assert studio.library.inspect(studio.library.path(studio.library.add(other).id))["civitai"] == 0
    (tmp_path / "wash.civitai.info").write_text(json.dumps({**foreign, "files": []}))
    assert studio.library.inspect(studio.library.path(studio.library.add(other).id))["civitai"] == 43, "it may come later"
