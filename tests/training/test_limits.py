"""Claims about what a run does when memory or disk do not suffice."""

import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from studio.errors import RunError
from studio.families import sources
from studio.jobs.failures import explain
from studio.training import checkpoint, preflight
from studio.training.step import Stepper

GIGABYTE = 10**9
Usage = namedtuple("Usage", "total used free")


def spoil(monkeypatch, largest: int, from_call: int = 1):
    """Memory that holds `largest` pictures at once, from that forward pass on; the list of batch sizes that were tried."""
    real, sizes = Stepper._losses, []

    def tight(self, micro):
        sizes.append(len(micro.level))
        if len(sizes) >= from_call and sizes[-1] > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, micro)

    monkeypatch.setattr(Stepper, "_losses", tight)
    return sizes


def weights(folder, step):
    return load_file(folder / "checkpoints" / f"step-{step:06d}" / checkpoint.ADAPTER)


def test_memory_that_runs_out_later_halves_the_batch_and_keeps_the_gradient(studio, tmp_path, monkeypatch, of_kind):
    values = {"batch_size": 3, "gradient_accumulation": 2, "steps": 3, "save_every": 2}
    straight = list(studio.run(studio.config(**values), tmp_path / "straight"))
    sizes = spoil(monkeypatch, 1, from_call=4)
    events = list(studio.run(studio.config(**values), tmp_path / "tight"))
    assert [e.message.partition(";")[0] for e in of_kind(events, "warned")] == ["step 2: memory ran out"]
    assert "one by one" in of_kind(events, "warned")[0].message
    assert max(sizes[5:]) == 1
    for one, two in zip(of_kind(straight, "step"), of_kind(events, "step"), strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-5) and two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)
    monkeypatch.undo()
    start = str(tmp_path / "tight" / "checkpoints" / "step-000002")
    list(studio.run(studio.config(**values, start_from=start), tmp_path / "again"))
    ours, theirs = weights(tmp_path / "again", 3), weights(tmp_path / "tight", 3)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "a resumed run goes on in the same pieces"


def test_memory_that_never_sufficed_names_a_lower_setting(studio, tmp_path, monkeypatch):
    spoil(monkeypatch, 1)
    config = studio.config(batch_size=2)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        list(studio.run(config, tmp_path))
    told = explain(caught.value, config.model_dump(), tmp_path, [])
    assert told.message == "the device ran out of memory" and "batch_size to 1 with gradient_accumulation 2" in told.remedy


def test_one_picture_that_does_not_fit_ends_the_run(studio, tmp_path, monkeypatch):
    spoil(monkeypatch, 0, from_call=2)
    with pytest.raises(torch.OutOfMemoryError):
        list(studio.run(studio.config(batch_size=2), tmp_path))


def test_a_disk_too_small_is_refused_before_the_first_step_with_numbers(studio, tmp_path, monkeypatch, of_kind):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(GIGABYTE, GIGABYTE - 10**6, 10**6))
    seen = []
    with pytest.raises(RunError, match=r"\d+ MB are needed for 3 checkpoints of up to \d+ MB and only 1 MB are free"):
        for event in studio.run(studio.config(steps=6, save_every=2), tmp_path):
            seen.append(event)
    assert not of_kind(seen, "started") and not (tmp_path / "checkpoints").exists()


def test_a_base_larger_than_the_memory_is_refused_with_numbers(monkeypatch, tmp_path):
    base = sources.find("demo-sdxl")
    cpu = torch.device("cpu")
    preflight.memory(base, torch.float32, cpu)
    assert preflight.weights(base) > 10**5 and preflight.weights(replace(base, path=tmp_path)) == 0
    monkeypatch.setattr(preflight, "free_memory", lambda _device: 1000)
    with pytest.raises(RunError, match=r"demo-sdxl needs \d+\.\d GB on cpu for its weights alone and 0\.0 GB are free"):
        preflight.memory(base, torch.float32, cpu)


def test_old_checkpoints_keep_their_lora_and_give_up_the_rest(studio, tmp_path):
    list(studio.run(studio.config(steps=6, save_every=1, anchor_every=3), tmp_path))
    found = checkpoint.list(tmp_path / "checkpoints")
    assert [stored.step for stored in found] == [1, 2, 3, 4, 5, 6]
    assert [stored.step for stored in found if checkpoint.OPTIMIZER in stored.files] == [3, 5, 6]
    assert [stored.step for stored in found if (stored.path / checkpoint.OPTIMIZER).exists()] == [3, 5, 6]
    assert checkpoint.verify(found[0].path) and checkpoint.adapter(found[0].path).layers
    with pytest.raises(RunError, match="holds the LoRA alone"):
        list(studio.run(studio.config(steps=6, start_from=str(found[0].path)), tmp_path / "again"))
