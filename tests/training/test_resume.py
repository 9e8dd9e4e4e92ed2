"""The exact-resume matrix: whatever is on and wherever it is cut, the same bits; and what turns red when a part of the state is lost.

Compared with atol 0 and rtol 0: every tensor of the last checkpoint (weights, optimizer, average, ranks), its state, and what was
told of each step and of each look at held-out pictures. Everything but the clock.
"""

import json
import shutil
from contextlib import suppress
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from studio import killpoints
from studio.data.images import read_set
from studio.errors import RunError
from studio.training import checkpoint, validation
from studio.training.step import Stepper

SDXL, FLUX = "demo-sdxl", "demo-flux"
# 3 batches an epoch, 2 a step: epochs end within step 2 and with steps 3 and 6
STEPS = 7
COMMON = {"steps": STEPS, "gradient_accumulation": 2, "lr_schedule": "cosine", "warmup_steps": 2, "save_every": 1}
BEYOND = 100  # no cut: to the end
MID = 0.5  # a cut at k + MID: killed in step k + 1 with the gradients of its first batch already summed up

DRAWN = {"flip": True, "caption_dropout": 0.4, "caption_shuffle": True}
NOISE = {"noise_offset": 0.05, "pyramid_noise": 3, "input_perturbation": 0.1}
HELD = {"validation_fraction": 0.3, "validation_every": 2}
EVERYTHING = {**DRAWN, **HELD, "ema_decay": 0.99, "masked_loss": True, "dropout": 0.2, "lora_plus_ratio": 4.0, "loss": "huber"}

# A new thing that a run can do gets a line here.
FEATURES = {
    "squares": {},  # one bucket: shuffled alone; the others have two
    "buckets": {},
    "one-batch-a-step": {"gradient_accumulation": 1},
    "flip": {"flip": True},
    "caption-dropout": {"caption_dropout": 0.4},
    "caption-words": {"caption_shuffle": True, "keep_tokens": 1},
    "ema": {"ema_decay": 0.99},
    "held-out": HELD,
    "masks": {"masked_loss": True},
    "prior": {"prior_prediction": True},
    "huber": {"loss": "huber"},
    "sizes": {"resolution": 96, "more_resolutions": (64,)},
    "dropout": {"dropout": 0.3},
    "bf16": {"precision": "bf16"},
    "bf16-ema": {"precision": "bf16", "ema_decay": 0.99},
    "noise": NOISE,
    "adafactor": {"optimizer": "adafactor"},
    "lion": {"optimizer": "lion"},
    "prodigy": {"optimizer": "prodigy"},
    "schedule-free": {"optimizer": "schedule-free", "lr_schedule": "constant"},
    "came": {"optimizer": "came"},
    "dora": {"network": "dora"},
    "loha": {"network": "loha"},
    "lokr": {"network": "lokr"},
    "adalora": {"network": "adalora", "steps": 10},  # fewer are refused
    "pissa": {"init": "pissa"},
    "everything": EVERYTHING,
}
SDXL_ONLY = {"noise"}
TRIPLES = [(1, 2 + MID, 6), (0, 3, 4)]
SINGLES = [(0,), (1,), (2,), (3 + MID,), (3,), (4,), (6,), (7,)]
CI = [(SDXL, "everything", (1, 2 + MID, 6)), (FLUX, "everything", (0, 3, 4))]
ALL = [(base, name, cuts) for base in (SDXL, FLUX) for name in FEATURES for cuts in TRIPLES if not (base == FLUX and name in SDXL_ONLY)]
ALL += [(base, "everything", cuts) for base in (SDXL, FLUX) for cuts in SINGLES]


@pytest.fixture(autouse=True, scope="module")
def _few_levels():
    """Two noise levels a look: that looks are the same is the claim, not what they find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "LEVELS", 2)
        yield


class Killed(BaseException):
    """Instead of SIGKILL, which tests/faults sends for real."""


@pytest.fixture(scope="module")
def rich(studio, tmp_path_factory):
    """The sample pictures with masks of their left halves and captions of several words."""
    folder = tmp_path_factory.mktemp("rich")
    for picture in studio.images.pictures:
        shutil.copy(picture.path, folder)
        mask = Image.new("L", (picture.width, picture.height), 60)
        mask.paste(255, (0, 0, picture.width // 2, picture.height))
        mask.save(folder / f"{picture.path.stem}-masklabel.png")
        (folder / f"{picture.path.stem}.txt").write_text(f"sun, yellow, number {picture.path.stem}, small")
    return replace(studio, images=read_set(folder))


@pytest.fixture(scope="module")
def unbroken(rich, tmp_path_factory):
    """What a run leaves behind when nothing happens to it; each is run once."""
    found = {}

    def of(base, name):
        if (base, name) not in found:
            folder = tmp_path_factory.mktemp("straight")
            told = list(chosen(rich, name).run(config_of(rich, base, name), folder))
            found[base, name] = log(told, BEYOND), left(folder / "checkpoints" / end_of(name))
        return found[base, name]

    return of


def end_of(name):
    return checkpoint.name_of(FEATURES[name].get("steps", STEPS))


def chosen(rich, name):
    if name != "squares":
        return rich
    return replace(rich, images=replace(rich.images, pictures=tuple(one for one in rich.images.pictures if one.width == one.height)))


def config_of(rich, base, name, **more):
    return rich.config(base, **{**COMMON, **FEATURES[name], **more})


def log(events, until):
    """What was told of steps and looks, up to a step."""
    steps = [(e.step, e.loss, e.learning_rate, e.gradient_norm) for e in events if e.kind == "step" and e.step <= until]
    return steps, [(e.step, e.loss, tuple(e.by_level), e.best, e.stale) for e in events if e.kind == "validation" and e.step <= until]


def left(path):
    """Everything in a checkpoint: tensors by file and name, and the state."""
    found = {}
    for file in checkpoint.verify(path).files:
        if file.endswith(".safetensors"):
            found |= {f"{file}/{name}": tensor for name, tensor in load_file(path / file).items()}
    state = asdict(checkpoint.state(path))
    state["settings"] = {name: value for name, value in state["settings"].items() if name != "start_from"}
    return found | state


def differing(one, two) -> list[str]:
    def same(a, b):
        return a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return sorted(set(one) ^ set(two)) + [name for name in one if name in two and not same(one[name], two[name])]


def stretch(studio, config, folder, begun, cut, monkeypatch):
    """One life of a run, from step `begun` until it is killed; what it told."""
    events = []
    if cut != int(cut):
        batches = config.gradient_accumulation
        killpoints.arm(f"batch:{(int(cut) - begun) * batches + batches}")
    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(killpoints.os, "kill", lambda *_: (_ for _ in ()).throw(Killed()))
        for event in studio.run(config, folder):
            events.append(event)
            if event.kind == "step" and event.step == cut + 1:
                break  # work beyond the checkpoint, which is lost
    assert cut == int(cut) or not killpoints._left.get("batch"), "the place was never reached"
    killpoints.arm("")
    return events


def follow(studio, base, name, folder, cuts, monkeypatch):
    """A run that is killed at each of the cuts and taken up again."""
    (steps, looks), start, begun = ([], []), None, 0
    for cut in (*cuts, BEYOND):
        events = stretch(studio, config_of(studio, base, name, start_from=start), folder, begun, cut, monkeypatch)
        told = log(events, int(cut))
        steps, looks = [s for s in steps if s[0] <= begun] + told[0], [s for s in looks if s[0] <= begun and (begun or not told[1])] + told[1]
        if cut == BEYOND:
            break
        begun = int(cut)
        start = str(folder / "checkpoints" / f"step-{begun:06d}") if begun else None
        assert start is None or checkpoint.verify(folder / "checkpoints" / f"step-{begun:06d}")
    return steps, looks


@pytest.mark.parametrize(
    ("base", "name", "cuts"),
    [pytest.param(*case, marks=() if case in CI else pytest.mark.long, id=f"{case[0]}-{case[1]}-{'-'.join(map(str, case[2]))}") for case in ALL],
)
def test_any_cut_ends_in_the_same_bits(rich, unbroken, tmp_path, monkeypatch, base, name, cuts):
    told, whole = unbroken(base, name)
    assert follow(chosen(rich, name), base, name, tmp_path, cuts, monkeypatch) == told
    assert differing(whole, left(tmp_path / "checkpoints" / end_of(name))) == []


# What is lost -> what must turn red: the weights too, or only what the run says of itself.
def tensors_of(file, part, change):
    def lose(path):
        tensors = load_file(path / file)
        spoiled = {name: change(tensor) if part in name else tensor for name, tensor in tensors.items()}
        assert differing(tensors, spoiled), "nothing was spoiled"
        save_file(spoiled, path / file)
        return file

    return lose


def state_of(part="", **values):
    """Spoils entries of the state, or of what a carried part keeps there."""

    def lose(path):
        state = json.loads((path / checkpoint.STATE).read_text())
        (state["entries"][part] if part else state).update(values)
        (path / checkpoint.STATE).write_text(json.dumps(state))
        return checkpoint.STATE

    return lose


LOST = {
    "weights": (tensors_of("ema.safetensors", "weights/", lambda t: t + 1e-6), True),
    "average": (tensors_of("ema.safetensors", "average/", lambda t: t + 1e-6), True),
    "average-count": (state_of("ema", updates=0), True),
    "moments": (tensors_of(checkpoint.OPTIMIZER, "exp_avg", torch.zeros_like), True),
    "second-moments": (tensors_of(checkpoint.OPTIMIZER, "exp_avg_sq", torch.ones_like), True),
    "optimizer-count": (tensors_of(checkpoint.OPTIMIZER, "/step", torch.ones_like), True),
    "cursor": (state_of(step=2), True),
    "skipped": (state_of(skipped=1), False),
    "loss-scale": (state_of(loss_scale=8.0), False),
    "loss-scale-steps": (state_of(scaled_steps=5), False),
    "micro": (state_of(micro=1), False),
    "best": (state_of("validation", best_loss=0.0), False),
    "patience": (state_of("validation", stale=9), False),
}
LATER = 4  # cut at 3
CONTROL = {"keep_checkpoints": 100, "validation_every": 3}


@pytest.fixture(scope="module")
def halfway(rich, tmp_path_factory):
    """A run with everything on, up to step LATER, and what it told: its checkpoint of step 3 is what is spoiled."""
    folder = tmp_path_factory.mktemp("halfway")
    told = stretch_to(rich, config_of(rich, SDXL, "everything", **CONTROL), folder)
    return folder / "checkpoints", log(told, LATER)


@pytest.mark.parametrize("lost", LOST)
def test_every_part_of_the_state_is_needed(rich, halfway, tmp_path, lost):
    """One part is spoiled behind the manifest's back: what follows must differ, or the matrix above proves nothing."""
    lose, trained = LOST[lost]
    folder = halfway[0]
    spoiled = shutil.copytree(folder / "step-000003", tmp_path / "checkpoints" / "step-000003")
    name = lose(spoiled)
    manifest = json.loads((spoiled / checkpoint.MANIFEST).read_text())
    manifest["files"][name] = {"sha256": checkpoint._file_sha256(spoiled / name), "bytes": (spoiled / name).stat().st_size}
    (spoiled / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    stretch_to(rich, config_of(rich, SDXL, "everything", **CONTROL, start_from=str(spoiled)), tmp_path)
    red = differing(left(folder / f"step-{LATER:06d}"), left(tmp_path / "checkpoints" / f"step-{LATER:06d}"))
    assert red
    assert any(name.startswith(("adapter", "ema", "optimizer")) for name in red) or not trained


def test_with_nothing_lost_the_control_stays_green(rich, halfway, tmp_path):
    folder, told = halfway
    whole = shutil.copytree(folder / "step-000003", tmp_path / "checkpoints" / "step-000003")
    events = stretch_to(rich, config_of(rich, SDXL, "everything", **CONTROL, start_from=str(whole)), tmp_path)
    assert differing(left(folder / f"step-{LATER:06d}"), left(tmp_path / "checkpoints" / f"step-{LATER:06d}")) == []
    assert log(events, LATER)[0] == told[0][3:]


def test_bad_steps_in_a_row_are_counted_across_a_resume(studio, tmp_path, monkeypatch):
    """Ten in a row end a run: here four before the cut and six after it."""
    real, calls = Stepper._losses, []

    def spoiled(self, micro):
        calls.append(1)
        return real(self, micro) * (float("nan") if len(calls) > 1 else 1.0)

    monkeypatch.setattr(Stepper, "_losses", spoiled)
    for event in studio.run(studio.config(steps=20, save_every=1), tmp_path):
        if event.kind == "checkpoint" and event.step == 5:
            break
    start = str(tmp_path / "checkpoints" / "step-000005")
    with pytest.raises(RunError, match="10 steps in a row, up to step 11"):
        list(studio.run(studio.config(steps=20, save_every=1, start_from=start), tmp_path))


def stretch_to(studio, config, folder):
    """A run up to the checkpoint of step LATER."""
    events = []
    for event in studio.run(config, folder):
        events.append(event)
        if event.kind == "checkpoint" and event.step == LATER:
            break
    return events
