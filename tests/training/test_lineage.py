"""Claims about what a run may go on from: the same run, from its last whole checkpoint, or else a fork that says so."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from studio import families
from studio.errors import RunError, SettingsError
from studio.families import sources
from studio.training import checkpoint, lineage
from studio.training.loop import train

from .conftest import Asked
from .test_loop import outcome, told


@pytest.fixture(scope="module")
def trained(studio, tmp_path_factory):
    """A run of four steps with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("trained")
    list(studio.run(studio.config(steps=4, save_every=1), folder))
    return folder / "checkpoints"


def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run" / "checkpoints")


def spoil(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edited(path, *, settings=None, **origin):
    """The checkpoint as if it had been written elsewhere, or with other settings."""
    state = json.loads((path / checkpoint.STATE).read_text())
    state["origin"] |= origin
    state["settings"] = state["settings"] if settings is None else settings
    content = json.dumps(state).encode()
    (path / checkpoint.STATE).write_bytes(content)
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    manifest["files"][checkpoint.STATE] = {"sha256": checkpoint._file_sha256(path / checkpoint.STATE), "bytes": len(content)}
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest))


def test_a_checkpoint_says_what_its_steps_depend_on(trained):
    origin = checkpoint.state(trained / "step-000004").origin
    assert origin["engine"] == lineage.ENGINE and origin["precision"] == "float32" and origin["device"] == "cpu"
    assert set(origin["base"]) == {"denoiser", "vae", "text"} and len(set(origin["base"].values())) == 3


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_whose_files_changed_is_refused_by_the_part(studio, trained, tmp_path, part):
    words = {"unet": "denoiser", "vae": "VAE", "text_encoder": "text encoders"}
    base = sources.find("demo-sdxl")
    moved = replace(base, path=shutil.copytree(base.path, tmp_path / "base"))
    start = str(copied(trained, tmp_path) / "step-000003")

    def run(config):
        return list(train(config, moved, studio.images, tmp_path / "b", studio.cache, requests=Asked(), preview=None, device="cpu"))

    assert run(studio.config(base=str(moved.path), steps=4, start_from=start))[-1].step == 4  # other place, same files
    weights = next((moved.path / part).glob("*.safetensors"))
    spoil(weights)
    with pytest.raises(SettingsError, match=rf"the base's {words[part]} \(its files are others now\); put them back, or fork it"):
        run(studio.config(base=str(moved.path), steps=4, start_from=start))


def test_everything_that_differs_is_listed_at_once(studio, trained, tmp_path):
    start = copied(trained, tmp_path) / "step-000003"
    edited(start, engine=0, precision="bfloat16")
    with pytest.raises(
        SettingsError, match=rf"rank 4 -> 6; .*the pictures.*; the number format bfloat16 -> float32; the way of taking steps 0 -> {lineage.ENGINE};"
    ):
        list(studio.run(studio.config(rank=6, trigger="new", start_from=str(start)), tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_another_torch_goes_on_and_says_that_bits_may_differ(studio, trained, tmp_path, of_kind):
    start = copied(trained, tmp_path) / "step-000003"
    edited(start, torch="2.0.0")
    events = list(studio.run(studio.config(steps=4, start_from=str(start)), tmp_path / "b"))
    assert [e.message for e in of_kind(events, "warned") if "torch 2.0.0 ->" in e.message and "does not equal it bit for bit" in e.message]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "manifest", "folder"])
@pytest.mark.parametrize("name", [checkpoint.ADAPTER, checkpoint.OPTIMIZER, checkpoint.STATE])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(studio, trained, tmp_path, of_kind, damage, name):
    if damage in ("manifest", "folder") and name != checkpoint.STATE:
        return  # neither is about one file: once is enough
    folder = copied(trained, tmp_path)
    last = folder / "step-000004"
    if damage == "flipped":
        spoil(last / name)
    elif damage == "cut":
        (last / name).write_bytes((last / name).read_bytes()[:-1])
    elif damage == "folder":
        shutil.rmtree(last)
    else:
        (last / (checkpoint.MANIFEST if damage == "manifest" else name)).unlink()
    stored, wrong = checkpoint.usable(last)
    assert stored.path.name == "step-000003" and len(wrong) == 1 and wrong[0].startswith("step-000004: ")
    if damage == "flipped" and name == checkpoint.OPTIMIZER:
        events = list(studio.run(studio.config(steps=5, save_every=2, start_from=str(last)), tmp_path / "run"))
        warned = [e.message for e in of_kind(events, "warned")]
        assert any("step-000004: optimizer.safetensors has changed since it was written: the run goes on from step 3 instead" in m for m in warned)
        assert [e.step for e in of_kind(events, "step")] == [4, 5]
        list(studio.run(studio.config(steps=5), tmp_path / "straight"))
        for ours, theirs in zip(outcome(tmp_path / "run", 5)[:2], outcome(tmp_path / "straight", 5)[:2], strict=True):
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        checkpoint.verify(last)  # replaced on the way


def test_with_no_whole_checkpoint_the_reason_of_each_is_told(trained, tmp_path):
    folder = copied(trained, tmp_path)
    for path in (folder / "step-000003", folder / "step-000004"):
        spoil(path / checkpoint.OPTIMIZER)
    with pytest.raises(RunError, match=r"step-000004: optimizer.*step-000003: optimizer.*step-000002 holds the LoRA alone.*start a new run") as caught:
        checkpoint.usable(folder / "step-000004")
    assert "\n" not in str(caught.value)


def test_a_fork_starts_anew_and_says_what_differs(studio, trained, tmp_path, of_kind):
    start = trained / "step-000002" / checkpoint.ADAPTER
    events = list(studio.run(studio.config(steps=2, learning_rate=0.001, start_from=str(start)), tmp_path / "b"))
    said = "a new run from the weights of step 2 of another; what differs from it: learning_rate 0.002 -> 0.001"
    assert said in [e.message for e in of_kind(events, "warned")]
    assert [step[0] for step in told(events)] == [1, 2]


def test_what_thinning_left_behind_is_swept(trained, tmp_path, monkeypatch):
    """The process dies between the shorter manifest and the removal of what it disowned."""
    folder = copied(trained, tmp_path)
    path = folder / "step-000004"

    class Died(BaseException):
        pass

    def die(_name):
        raise Died

    monkeypatch.setattr(checkpoint, "reached", lambda name: die(name) if name == "checkpoint-thin" else None)
    with pytest.raises(Died):
        checkpoint.thin(path)
    assert (path / checkpoint.OPTIMIZER).exists() and not checkpoint.check(path).whole
    checkpoint.sweep(folder)
    assert {file.name for file in path.iterdir()} == {checkpoint.ADAPTER, checkpoint.STATE, checkpoint.MANIFEST}
    assert (folder / "step-000003" / checkpoint.OPTIMIZER).exists()


def test_retaining_moves_the_mark_of_the_best_and_keeps_it_whole(studio, tmp_path):
    list(studio.run(studio.config(steps=6, save_every=1, keep_checkpoints=100), tmp_path))
    folder = tmp_path / "checkpoints"
    checkpoint.retain(folder, 100, 0, best=5)
    checkpoint.retain(folder, 2, 0, best=2)
    found = {stored.step: stored for stored in checkpoint.list(folder)}
    assert [step for step, stored in found.items() if stored.best] == [2]
    assert [step for step, stored in found.items() if stored.whole] == [2, 5, 6]
    assert all(checkpoint.verify(stored.path) for stored in found.values())


def test_the_denoiser_has_an_identity_of_its_own(tmp_path):
    from studio.data.cache import identity

    base = sources.find("demo-sdxl")
    family = families.get(base.family).facts.name
    moved = replace(base, path=shutil.copytree(base.path, tmp_path / "base"))
    before = {part: identity(moved, family, part) for part in ("denoiser", "vae", "text")}
    spoil(next((moved.path / "unet").glob("*.safetensors")))
    after = {part: identity(moved, family, part) for part in ("denoiser", "vae", "text")}
    assert [part for part in before if before[part] != after[part]] == ["denoiser"]
