"""A file takes its name when it is proven, not before; what goes beside it; the same run gives the same bytes."""

import json
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image

from studio.config import TrainConfig
from studio.errors import FormatError
from studio.jobs import exporting
from studio.lora import proof
from studio.lora.adapter import Adapter, LowRank
from studio.metadata import read_header
from studio.workspace import Workspace
from tests.jobs.conftest import SHORT


def adapter() -> Adapter:
    names = [f"unet.mid_block.attentions.0.transformer_blocks.{i}.attn2.to_{x}" for i in range(3) for x in "qv"]
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator) * 0.02  # noqa: E731
    return Adapter("sdxl", {name: LowRank(draw(4, 2048 if name.endswith("v") else 1280), draw(1280, 4), 2.0) for name in names})


def test_a_file_that_fails_is_not_published_and_the_older_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "mine.safetensors"
    report = exporting.publish(adapter(), target, "kohya", "fp16", {})
    before = target.read_bytes()
    assert report["passed"] and report["file"] == "mine.safetensors" and report["loaders"][1]["run"]
    assert read_header(target).metadata["ss_output_name"] == "mine"
    real = proof.prove
    monkeypatch.setattr(proof, "prove", lambda *args: {**real(*args), "passed": False, "faults": ["Forge: refuses it"]})
    with pytest.raises(FormatError, match=r"mine\.safetensors was not published: Forge: refuses it"):
        exporting.publish(adapter(), target, "kohya", "bf16", {})
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def test_an_adapter_whose_delta_is_lost_in_the_number_format_fails(tmp_path: Path) -> None:
    """fp16 cannot hold 1e-9: the file would do nothing."""
    faint = Adapter("sdxl", {path: LowRank(layer.down * 1e-9, layer.up, 2.0) for path, layer in adapter().layers.items()})
    with pytest.raises(FormatError, match=r"was not published.*differs by"):
        exporting.publish(faint, tmp_path / "f.safetensors", "kohya", "fp16", {})
    assert not list(tmp_path.iterdir())


def test_side_files_are_those_that_others_look_for(tmp_path: Path) -> None:
    target = tmp_path / "mine.safetensors"
    Image.new("RGB", (900, 600), "blue").save(tmp_path / "sample.jpg")
    words = {"modelspec.trigger_phrase": "zqx", **exporting.thumbnail(tmp_path / "sample.jpg")}
    exporting.publish(adapter(), target, "kohya", "fp16", words)
    assert exporting.side_files(target, tmp_path / "sample.jpg") == ["mine.preview.png", "mine.json", "mine.civitai.md"]
    with Image.open(tmp_path / "mine.preview.png") as picture:
        assert picture.format == "PNG" and max(picture.size) == 768
    assert json.loads((tmp_path / "mine.json").read_text())["activation text"] == "zqx"
    assert "SDXL 1.0" in (tmp_path / "mine.civitai.md").read_text()
    assert exporting.side_files(target, None) == ["mine.json", "mine.civitai.md"]


def finished(studio: Workspace, job: str) -> None:
    for _ in studio.jobs.follow(job):
        pass
    assert studio.jobs.show(job).state == "finished", studio.jobs.show(job).message


def test_a_run_gives_the_same_bytes_every_time_and_nothing_private(studio: Workspace, data: Path, tmp_path: Path) -> None:
    """From training to the file: its proof is kept in the library, its header holds a picture and no path, user or host."""
    job = studio.jobs.train(TrainConfig.model_validate({**SHORT, "name": "proven", "steps": 2, "sample_every": 2}))
    finished(studio, job.id)
    (row,) = studio.library.list("proven")
    assert "report" not in row.facts and studio.library.show(row.id).facts["report"]["passed"]
    again = [tmp_path / name / f"{row.name}.safetensors" for name in ("a", "b")]
    for target in again:
        finished(studio, studio.jobs.export(job.id, target).id)
    assert again[0].read_bytes() == again[1].read_bytes() == studio.library.path(row.id).read_bytes()
    header = read_header(again[0])
    assert "modelspec.thumbnail" in header.metadata  # its letters are a picture, in which any short name may stand by chance
    text = json.dumps({name: value for name, value in header.metadata.items() if name != "modelspec.thumbnail"}, ensure_ascii=False)
    for private in (str(data), str(tmp_path), str(Path.home()), socket.gethostname()):
        assert private not in text, private
    plain = tmp_path / "plain.safetensors"
    finished(studio, studio.jobs.export(job.id, plain, thumbnail=False, tags="always", side_files=True).id)
    words = read_header(plain).metadata
    assert "modelspec.thumbnail" not in words and "ss_tag_frequency" in words and (tmp_path / "plain.json").is_file()
