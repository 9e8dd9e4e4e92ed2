"""What trackers were told, read back from what they wrote."""

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from studio.config import TrainConfig
from studio.errors import SettingsError
from studio.events import Event, Finished, Sample, Started, Step, Warned
from studio.jobs import trackers


def run(folder: Path) -> Iterator[Event]:
    """Three steps and a sample, as a training tells them."""
    (folder / "samples").mkdir()
    Image.new("RGB", (8, 6), (250, 10, 20)).save(folder / "samples" / "a.png")
    yield Started(total=3, settings={"rank": 4, "alpha": None, "trackers": ["tensorboard"]})
    for step in (1, 2, 3):
        yield Step(step=step, total=3, loss=0.5 / step, learning_rate=1e-3, gradient_norm=2.0 * step, seconds=0.25)
    yield Sample(step=3, path="samples/a.png", prompt="a red wall", seed=1)
    yield Finished(step=3)


def config(*names: str) -> TrainConfig:
    return TrainConfig.model_validate({"images": "set", "name": "mine", "trackers": list(names)})


def test_tensorboard_holds_every_figure_and_the_sample(tmp_path: Path) -> None:
    told = list(trackers.tracked(run(tmp_path), config("tensorboard"), tmp_path))
    assert [event.kind for event in told] == ["started", "step", "step", "step", "sample", "finished"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "trackers" / "tensorboard" / "mine"))
    read.Reload()
    figures = {tag: [(row.step, row.value) for row in read.Scalars(tag)] for tag in ("loss", "learning_rate", "gradient_norm", "seconds")}
    assert figures["loss"] == [(1, 0.5), (2, 0.25), (3, pytest.approx(0.5 / 3))]
    assert figures["gradient_norm"] == [(1, 2.0), (2, 4.0), (3, 6.0)]
    assert [step for step, _ in figures["learning_rate"]] == [step for step, _ in figures["seconds"]] == [1, 2, 3]
    (tag,) = read.Tags()["images"]
    (picture,) = read.Images(tag)
    assert "a red wall" in tag and (picture.step, picture.width, picture.height) == (3, 8, 6)


def test_a_tracker_that_fails_warns_once_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(trackers, "_tell", broken)
    told = list(trackers.tracked(run(tmp_path), config("tensorboard"), tmp_path))
    assert [event.kind for event in told if not isinstance(event, Warned)] == ["started", "step", "step", "step", "sample", "finished"]
    assert [event.message for event in told if isinstance(event, Warned)] == ["tensorboard is told nothing more: OSError: no space"]


def test_a_missing_package_is_told_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else there(name))
    trackers.check(("tensorboard",))
    with pytest.raises(SettingsError, match="pip install wandb"):
        trackers.check(("tensorboard", "wandb"))


def test_trackers_are_named_by_commas_or_as_a_list() -> None:
    assert config("tensorboard,wandb").trackers == config("tensorboard", "wandb", "wandb").trackers == ("tensorboard", "wandb")
    assert TrainConfig(images="set", trackers="mlflow").trackers == ("mlflow",)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        config("paper")


def test_mlflow_holds_figures_and_settings_of_every_run_in_its_own_folder(tmp_path: Path) -> None:
    """Two runs of one process, as a worker has them, in two databases; read back as MLflow reads them."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        told = list(trackers.tracked(run(tmp_path / name), config("mlflow"), tmp_path / name))
        assert [event.kind for event in told] == ["started", "step", "step", "step", "sample", "finished"]

    from mlflow.tracking import MlflowClient

    for name in ("first", "second"):
        client = MlflowClient(f"sqlite:///{tmp_path / name / 'trackers' / 'mlflow.db'}")
        (experiment,) = client.search_experiments(filter_string="name = 'lora-studio'")
        (found,) = client.search_runs([experiment.experiment_id])
        assert (found.info.run_name, found.info.status, found.data.params["rank"]) == ("mine", "FINISHED", "4")
        history = {key: [(row.step, row.value) for row in client.get_metric_history(found.info.run_id, key)] for key in ("loss", "gradient_norm")}
        assert history["loss"] == [(1, 0.5), (2, 0.25), (3, pytest.approx(0.5 / 3))]
        assert history["gradient_norm"] == [(1, 2.0), (2, 4.0), (3, 6.0)]


@pytest.mark.long
def test_wandb_writes_into_the_job_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    told = list(trackers.tracked(run(tmp_path), config("wandb"), tmp_path))
    assert [event.message for event in told if isinstance(event, Warned)] == []
    (file,) = (tmp_path / "trackers").glob("wandb/offline-run-*/*.wandb")
    found = records(file.read_bytes())
    rows = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in one.history.item}
        for one in found
        if one.WhichOneof("record_type") == "history"
    ]
    assert [(row["_step"], row["loss"]) for row in rows if "loss" in row] == [(1, 0.5), (2, 0.25), (3, pytest.approx(0.5 / 3))]
    assert [one.WhichOneof("record_type") for one in found].count("exit") == 1, "it was finished, so that `wandb sync` takes it as whole"


def records(content: bytes) -> list[Any]:
    """Those of a W&B file: after 7 bytes, blocks of 32 KiB as LevelDB's log has them: checksum, length, whether more follows, piece."""
    from wandb.proto import wandb_internal_pb2

    found, pieces, at = [], b"", 7
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        pieces += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            found.append(wandb_internal_pb2.Record.FromString(pieces))  # type: ignore[attr-defined]
            pieces = b""
    return found
