"""Every optimizer and every objective once, on the real demo bases: it trains, the same draws cost less afterwards, the file reads back."""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from studio import families
from studio.data.cache import Cache
from studio.data.images import Companion, read_set
from studio.errors import ImageError
from studio.families import sources
from studio.lora import formats
from studio.training import checkpoint
from studio.training.drawing import drawn
from studio.training.optim import OPTIMIZERS
from studio.training.plan import plan

from .test_loop import told

SDXL, FLUX = "demo-sdxl", "demo-flux"
STEPS = 3
RATES = {"prodigy": 1.0, "lion": 2e-3, "came": 1e-3}
RATE = 5e-3  # of the others: three steps are few
# Prodigy's first estimate of the rate is made for runs of hundreds of steps.
OPTIONS = {"prodigy": ("d0=1e-3",)}

NOISE_PREDICTING = [
    {"min_snr_gamma": 5.0},
    {"debiased": True},
    {"loss": "huber"},
    {"loss": "huber", "huber_schedule": "exponential"},
    {"noise_offset": 0.05},
    {"pyramid_noise": 6},
    {"input_perturbation": 0.1},
    {"masked_loss": True},
    {"masked_loss": True, "masked_prior_weight": 0.5},
    {"prior_prediction": True},
    {"caption_shuffle": True, "caption_lines": "draw", "tag_dropout": 0.2},
    {"more_resolutions": (80,)},
]
FLOW = [
    {"timestep_sampling": "uniform"},
    {"timestep_sampling": "mode"},
    {"timestep_mean": -0.5, "timestep_scale": 1.5},
    {"flow_shift": 2.0},
]
CASES = [(SDXL, {"optimizer": name, "optimizer_options": OPTIONS.get(name, ()), "learning_rate": RATES.get(name, RATE)}) for name in sorted(OPTIMIZERS)]
CASES += [(SDXL, values) for values in NOISE_PREDICTING] + [(FLUX, values) for values in FLOW]
LONG = [(FLUX, {"optimizer": name, "optimizer_options": OPTIONS.get(name, ()), "learning_rate": RATES.get(name, RATE)}) for name in sorted(OPTIMIZERS)]
LONG += [
    (FLUX, {"loss": "huber"}),
    (FLUX, {"masked_loss": True}),
    (FLUX, {"masked_loss": True, "masked_prior_weight": 0.5}),
    (FLUX, {"prior_prediction": True}),
    (FLUX, {"input_perturbation": 0.1}),
]
LONG += [(FLUX, {"caption_shuffle": True}), (FLUX, {"more_resolutions": (96,)}), (SDXL, {"loss": "huber", "huber_schedule": "constant"})]


def named(case) -> str:
    base, values = case
    return f"{base}-" + "-".join(f"{key}={value}" for key, value in values.items() if value and key not in ("optimizer_options", "learning_rate"))


@pytest.fixture(scope="module")
def masked(studio, tmp_path_factory):
    """The sample pictures with masks of their left halves, and captions of two lines of tags."""
    folder = tmp_path_factory.mktemp("masked")
    for picture in studio.images.pictures:
        shutil.copy(picture.path, folder / picture.name)
        mask = Image.new("L", (picture.width, picture.height), 0)
        mask.paste(255, (0, 0, picture.width // 2, picture.height))
        mask.save(folder / f"{picture.path.stem}-masklabel.png")
        (folder / f"{picture.path.stem}.txt").write_text(f"sun, yellow, sky\nnumber {picture.path.stem}, disc")
    return replace(studio, images=read_set(folder))


def trains(studio, base, values, folder):
    """Train; what the first step's draws cost before and after; the trained adapter."""
    common = {"batch_size": 5, "learning_rate": RATE, **values}
    first = told(studio.run(studio.config(base, **common, steps=STEPS), folder / "train"))
    trained = folder / "train" / "checkpoints" / f"step-{STEPS:06d}" / checkpoint.ADAPTER
    plain = {"optimizer": "adamw", "optimizer_options": (), "learning_rate": 1e-12}
    running = studio.run(studio.config(base, **{**common, **plain}, steps=1, start_from=str(trained)), folder / "again")
    again = next(event for event in running if event.kind == "step")
    running.close()
    return first[0][1], again.loss, checkpoint.adapter(trained.parent)


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.long) for case in LONG)], ids=named)
def test_it_trains_lowers_the_loss_and_exports(masked, tmp_path, case):
    before, after, adapter = trains(masked, *case, tmp_path)
    assert after < 0.97 * before
    formats.write(adapter, tmp_path / "lora.safetensors", format="kohya", dtype="fp32", metadata={})
    back = formats.read(tmp_path / "lora.safetensors")
    assert back.layers.keys() == adapter.layers.keys()
    for path, layer in adapter.layers.items():
        torch.testing.assert_close(back.layers[path].delta(), layer.delta(), atol=1e-6, rtol=1e-5)


def test_velocity_with_zero_terminal_snr_trains(masked, tmp_path, monkeypatch):
    """The demo base read as if it predicted velocity: wrong at first, which is what training mends."""
    found = sources.find(SDXL)
    folder = tmp_path / "base"
    shutil.copytree(found.path, folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', '"v_prediction"'))
    base = replace(found, name="velocity", path=folder, habits={**found.habits, "objective": "v"})
    monkeypatch.setattr(sources, "find", lambda name: base)
    before, after, _ = trains(masked, "velocity", {"zero_terminal_snr": True, "min_snr_gamma": 5.0}, tmp_path)
    assert after < 0.97 * before


def test_a_batch_brings_the_masks_of_its_pictures_mirrored_as_they_are(masked, tmp_path):
    found = sources.find(SDXL)
    made = plan(masked.config(masked_loss=True, flip=True), found, families.get("sdxl").facts, masked.images, None)
    store = Cache(masked.cache, found, families.get("sdxl"), torch.float32, torch.device("cpu"))
    list(store.fill(made.everything()))
    batch = store.batch([made.want(0), made.want(0, mirrored=True), replace(made.want(0), masked=False)])
    assert batch.masks is not None and batch.masks.shape == (3, 1, *batch.latents.shape[-2:])
    left, right, whole = batch.masks[:, 0, 0]
    assert left.tolist() == [1.0] * (len(left) // 2) + [0.0] * (len(left) // 2) == right.flip(0).tolist()
    assert whole.min() == 1
    assert store.batch([replace(made.want(0), masked=False)]).masks is None
    chosen = made.batch(0)
    micro = drawn(store, [draw for _, draw in chosen], [want for want, _ in chosen], masked.config(masked_loss=True, unmasked_weight=0.25))
    assert micro.batch.masks is not None and sorted(set(micro.batch.masks.flatten().tolist())) == [0.25, 1.0]


def test_a_mask_that_shows_nothing_names_its_picture(masked, tmp_path):
    shutil.copytree(masked.images.folder, tmp_path / "set")
    Image.new("L", (64, 64), 0).save(tmp_path / "set" / "1-masklabel.png")
    with pytest.raises(ImageError, match=r"1\.png: its mask shows nothing"):
        list(replace(masked, images=read_set(tmp_path / "set")).run(masked.config(masked_loss=True), tmp_path / "run"))


def test_prior_prediction_starts_at_no_loss_and_a_weight_of_regularisation_counts(studio, masked, tmp_path):
    """Before the first step the base with an adapter that does nothing predicts what the base predicts."""
    regular = Companion(studio.images, regular=True)
    alone = replace(masked, images=replace(masked.images, companions=(regular,)))
    values = {"steps": 1, "gradient_accumulation": 4, "batch_size": 5}
    prior = told(alone.run(alone.config(prior_prediction=True, **values), tmp_path / "prior"))[0][1]
    doubled = told(alone.run(alone.config(prior_weight=2.0, **values), tmp_path / "doubled"))[0][1]
    single = told(alone.run(alone.config(**values), tmp_path / "single"))[0][1]
    own = 2 * single - doubled  # single = own + regular, doubled = own + 2 regular
    assert prior == pytest.approx(own, rel=1e-4) and 0 < prior < single < doubled


def test_masked_prior_is_the_plain_error_against_the_base_in_the_black(masked, tmp_path):
    from studio.lora import attach
    from studio.lora.bare import bare
    from studio.training.objective import Flow
    from studio.training.step import Stepper

    found = sources.find(FLUX)
    config = masked.config(FLUX, masked_loss=True, masked_prior_weight=0.5)
    family = families.get("flux")
    made = plan(config, found, family.facts, masked.images, None)
    store = Cache(masked.cache, found, family, torch.float32, torch.device("cpu"))
    list(store.fill(made.everything()))
    attached = attach.attach(family.load(found, ["denoiser"], torch.float32, torch.device("cpu")), made.config)
    stepper = Stepper(attached, family, Flow(lambda shape: 1.0), made.config)
    for parameter in stepper.weights.exact:
        torch.nn.init.normal_(parameter, std=0.3)
    chosen = made.batch(0)
    micro = drawn(store, [draw for _, draw in chosen], [want for want, _ in chosen], made.config)
    assert micro.outside is not None and micro.batch.masks is not None
    noised = stepper.objective.noised(micro.batch.latents, micro.noise, micro.level)
    with torch.no_grad():
        now = stepper._predict(micro.batch, noised, micro.batch.conditioning)
        with bare(attached.components.denoiser):
            base = stepper._predict(micro.batch, noised, micro.batch.conditioning)
    black = 1 - micro.batch.masks
    error = ((now - base).square().mean(1, keepdim=True) * black).flatten(1).sum(1) / black.flatten(1).sum(1)
    inside = stepper.measure(replace(micro, outside=None))
    torch.testing.assert_close(stepper.measure(micro), inside + 0.5 * error, rtol=1e-4, atol=1e-6)
    assert torch.equal(stepper.measure(replace(micro, outside=torch.zeros_like(black))), inside), "a picture without black pays nothing"
