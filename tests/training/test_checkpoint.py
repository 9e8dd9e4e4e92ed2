"""Claims about checkpoints: complete or absent, and never trusted unread."""

import os
import shutil

import pytest
import torch

from studio.errors import RunError
from studio.lora.adapter import Adapter, LowRank
from studio.training import checkpoint
from studio.training.checkpoint import State

FILES = (checkpoint.ADAPTER, checkpoint.OPTIMIZER, checkpoint.STATE)


def adapter(value: float = 0.1) -> Adapter:
    return Adapter("sdxl", {"unet.a.to_q": LowRank(torch.full((2, 3), value), torch.full((4, 2), value), alpha=0.3)})


def save(folder, step=1, value=0.1):
    state = State(step=step, family="sdxl", images="hash", settings={"seed": 2}, skipped=1, loss_scale=4.0)
    return checkpoint.save(folder, state, adapter(value), {"optimizer": {"w/exp_avg": torch.arange(3.0), "w/step": torch.tensor(7.0)}})


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    stored = save(tmp_path, step=200)
    assert stored.path.name == "step-000200"
    layer = checkpoint.adapter(stored.path).layers["unet.a.to_q"]
    assert isinstance(layer, LowRank)
    assert torch.equal(layer.down, torch.full((2, 3), 0.1)) and torch.equal(layer.up, torch.full((4, 2), 0.1)) and layer.alpha == 0.3
    assert torch.equal(checkpoint.part(stored.path, "optimizer")["w/exp_avg"], torch.arange(3.0))
    state = checkpoint.state(stored.path)
    assert (state.step, state.family, state.settings, state.skipped, state.loss_scale) == (200, "sdxl", {"seed": 2}, 1, 4.0)


def test_checkpoints_are_listed_in_order_and_no_pickle_is_written(tmp_path):
    for step in (1000000, 5, 200):
        save(tmp_path, step)
    assert [stored.step for stored in checkpoint.list(tmp_path)] == [5, 200, 1000000]
    latest = checkpoint.latest(tmp_path)
    assert latest is not None and latest.step == 1000000
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_no_checkpoints_is_no_error(tmp_path):
    assert checkpoint.list(tmp_path / "absent") == ()
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed_and_the_one_before_is_used(tmp_path, name):
    save(tmp_path, 1)
    broken = save(tmp_path, 2).path
    content = bytearray((broken / name).read_bytes())
    content[len(content) // 2] ^= 1
    (broken / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{name} has changed"):
        checkpoint.verify(broken)
    with pytest.raises(RunError):
        checkpoint.adapter(broken)
    latest = checkpoint.latest(tmp_path)
    assert latest is not None and latest.step == 1


@pytest.mark.parametrize("name", (*FILES, checkpoint.MANIFEST))
def test_a_truncated_or_missing_file_is_no_checkpoint(tmp_path, name):
    save(tmp_path, 1)
    cut, gone = save(tmp_path, 2).path, save(tmp_path, 3).path
    (cut / name).write_bytes((cut / name).read_bytes()[:-1])
    (gone / name).unlink()
    assert [stored.step for stored in checkpoint.list(tmp_path)] == [1]


def test_an_unfinished_save_is_not_listed_and_is_swept(tmp_path):
    shutil.copytree(save(tmp_path, 1).path, tmp_path / "step-000002.part-abc")
    assert [stored.step for stored in checkpoint.list(tmp_path)] == [1]
    checkpoint.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_saving_a_step_again_replaces_it(tmp_path):
    old, new = save(tmp_path, 1, 0.1), save(tmp_path, 1, 0.2)
    assert old.sha256 != new.sha256
    assert checkpoint.verify(tmp_path / "step-000001").sha256 == new.sha256
    assert len(list(tmp_path.iterdir())) == 1


def test_whatever_write_fails_leaves_the_old_checkpoint_or_the_new_one(tmp_path, monkeypatch):
    """The n-th flush to disk fails, for every n until a save meets no failure."""
    save(tmp_path, 1, 0.1)
    real = os.fsync
    for n in range(20):
        calls = iter(range(100))

        def failing(handle, n=n, calls=calls):
            if next(calls) == n:
                raise OSError(28, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", failing)
        try:
            save(tmp_path, 2, 0.2)
        except RunError as error:
            assert "No space left on device" in str(error)
            assert checkpoint.verify(tmp_path / "step-000001").step == 1
            assert not list(tmp_path.glob("*.part-*"))
            if (tmp_path / "step-000002").exists():
                checkpoint.verify(tmp_path / "step-000002")
        else:
            break
    assert n == 6  # four files, the folder, its parent
    assert checkpoint.verify(tmp_path / "step-000002").step == 2


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    with pytest.raises(RunError, match=r"weights of unet\.a\.to_q are not finite"):
        save(tmp_path, 1, float("nan"))
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_of_a_newer_version_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SCHEMA", 99)
    path = save(tmp_path, 1).path
    monkeypatch.undo()
    with pytest.raises(RunError, match="newer version"):
        checkpoint.check(path)
