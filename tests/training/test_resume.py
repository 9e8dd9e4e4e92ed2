"""The exact-resume matrix: cuts, shuffled draws, and what goes red when a part of the state is lost."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.training import checkpoint
from studio.training.optim import OPTIMIZERS

from .test_loop import outcome, told

# 3 batches an epoch, 2 a step: an epoch ends after step 3; every other step ends within one
STEPS = 7
DRAWS = {"plain": {}, "flip": {"flip": True}, "dropout": {"caption_dropout": 0.4}, "both": {"flip": True, "caption_dropout": 0.4}}
CUTS = [(1,), (2,), (3,), (6,), (7,), (1, 3, 6), (2, 3, 4)]
CI = [("both", (1, 3, 6)), ("both", (7,))]


def follow(studio, values, folder, cuts):
    """A run that is taken up again after each of the cuts, the step after each being lost; its steps and where it ends."""
    start, steps, home = None, [], folder
    for i, cut in enumerate((*cuts, STEPS)):
        home = folder / str(i)
        for event in studio.run(studio.config(**values, start_from=start, save_every=1), home):
            if event.kind == "step" and event.step <= cut:
                steps += told([event])
            if event.kind == "step" and event.step == cut + 1:
                break  # work beyond the checkpoint, which is lost
        start = str(home / "checkpoints" / f"step-{cut:06d}") if (home / "checkpoints" / f"step-{cut:06d}").exists() else start
    return steps, start


def values_of(draws):
    return {"gradient_accumulation": 2, "lr_schedule": "cosine", "warmup_steps": 2, "steps": STEPS, **DRAWS[draws]}


def differing(one, two) -> list[str]:
    return [name for a, b in zip(one[:2], two[:2], strict=True) for name in a if not torch.equal(a[name], b[name])]


def at(path):
    found = checkpoint.verify(path).path
    return load_file(found / checkpoint.ADAPTER), load_file(found / checkpoint.OPTIMIZER)


@pytest.mark.parametrize(
    ("draws", "cuts"), [pytest.param(d, c, marks=() if (d, c) in CI else pytest.mark.long, id=f"{d}-{'-'.join(map(str, c))}") for d in DRAWS for c in CUTS]
)
def test_any_cut_ends_in_the_same_bits(studio, tmp_path, draws, cuts):
    values = values_of(draws)
    straight = told(studio.run(studio.config(**values), tmp_path / "straight"))
    steps, end = follow(studio, values, tmp_path / "cut", cuts)
    assert steps == straight
    assert differing(outcome(tmp_path / "straight", STEPS), at(tmp_path / end)) == []


OTHER_OPTIMIZERS = sorted(set(OPTIMIZERS) - {"adamw"})


@pytest.mark.parametrize("optimizer", OTHER_OPTIMIZERS)
def test_any_optimizer_ends_in_the_same_bits(studio, tmp_path, optimizer):
    """With previews between, which show the weights that would be saved and must not move the ones that train."""
    shown = []

    def preview(c, step, folder):
        shown.append(c.denoiser.state_dict())
        return iter(())

    rate = {"prodigy": 1.0}.get(optimizer, 0.002)
    values = {**values_of("both"), "steps": 4, "optimizer": optimizer, "learning_rate": rate, "rank": 16, "precision": "bf16"}
    straight = told(studio.run(studio.config(**values), tmp_path / "straight"))
    config = studio.config(**values, save_every=1, sample_every=1, keep_checkpoints=9)
    first = told(event for event in studio.run(config, tmp_path / "a", preview=preview))
    assert first == straight and len(shown) == 4
    start = str(tmp_path / "a" / "checkpoints" / "step-000002")
    assert told(studio.run(studio.config(**values, start_from=start), tmp_path / "b")) == straight[2:]
    assert differing(outcome(tmp_path / "straight", 4), outcome(tmp_path / "b", 4)) == []


def test_a_schedule_free_run_shows_and_saves_its_average(studio, tmp_path):
    shown = []

    def preview(c, step, folder):
        shown.append({name: p.clone() for name, p in c.denoiser.named_parameters() if ".lora_B." in name})
        return iter(())

    list(studio.run(studio.config(optimizer="schedule-free", sample_every=3, steps=3), tmp_path, preview=preview))
    saved, memory, _ = outcome(tmp_path, 3)
    pairs = [(saved[f"unet.{name.partition('.lora_B.')[0]}.up"], memory[f"{name}/@point"], weight) for name, weight in shown[0].items()]
    assert all(torch.equal(kept, weight) for kept, _, weight in pairs)
    assert not any(torch.equal(kept, point) for kept, point, _ in pairs)


def lose_moments(path):
    tensors = load_file(path / checkpoint.OPTIMIZER)
    return checkpoint.OPTIMIZER, {name: torch.zeros_like(t) if name.endswith("exp_avg") else t for name, t in tensors.items()}


def lose_count(path):
    tensors = load_file(path / checkpoint.OPTIMIZER)
    return checkpoint.OPTIMIZER, {name: torch.ones_like(t) if name.endswith("/step") else t for name, t in tensors.items()}


def lose_weights(path):
    tensors = load_file(path / checkpoint.ADAPTER)
    return checkpoint.ADAPTER, {name: t + 1e-6 if name.endswith(".up") else t for name, t in tensors.items()}


def lose_step(path):
    state = json.loads((path / checkpoint.STATE).read_text())
    return checkpoint.STATE, {**state, "step": 2}


def lose_seed(path):
    state = json.loads((path / checkpoint.STATE).read_text())
    return checkpoint.STATE, {**state, "settings": {**state["settings"], "seed": 8}}


@pytest.mark.parametrize("lose", [lose_moments, lose_count, lose_weights, lose_step, lose_seed])
def test_every_part_of_the_state_is_needed(studio, tmp_path, lose):
    """One part is spoiled behind the manifest's back: what follows must differ, or the matrix above proves nothing."""
    values = {**values_of("both"), "steps": 5}
    straight = told(studio.run(studio.config(**values, save_every=3), tmp_path / "straight"))
    spoiled = tmp_path / "spoiled"
    shutil.copytree(tmp_path / "straight" / "checkpoints" / "step-000003", spoiled)
    name, content = lose(spoiled)
    if name == checkpoint.STATE:
        (spoiled / name).write_text(json.dumps(content))
    else:
        save_file(content, spoiled / name)
    manifest = json.loads((spoiled / checkpoint.MANIFEST).read_text())
    raw = (spoiled / name).read_bytes()
    manifest["files"][name] = {"sha256": checkpoint._file_sha256(spoiled / name), "bytes": len(raw)}
    (spoiled / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    seed = {"seed": 8} if lose is lose_seed else {}
    steps = told(studio.run(studio.config(**values, **seed, start_from=str(spoiled)), tmp_path / "after"))
    assert steps[-2:] != straight[3:]
    assert differing(outcome(tmp_path / "straight", 5), outcome(tmp_path / "after", 5))
