"""Claims about the rank probe: what it takes away is what held-out pictures do not miss, and it says what it cannot do."""

from dataclasses import replace

import pytest
import torch

from studio.config import TrainConfig, build
from studio.errors import Cancelled, FormatError, InputError, SettingsError
from studio.evaluation import probe
from studio.evaluation.checkpoints import measured_by
from studio.families import sources
from studio.lora.adapter import Adapter, Decomposed, Kronecker, LowRank
from studio.lora.tools import trim
from studio.lora.tools.resize import resize
from studio.training import checkpoint
from tests.training.conftest import Asked, Studio, studio  # noqa: F401  a fixture

HELD = {"validation_fraction": 0.4, "validation_every": 100, "learning_rate": 5e-3, "steps": 8, "batch_size": 9}


def returned(generator):
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def trained(studio, tmp_path_factory):  # noqa: F811
    """A LoRA of rank 2 with six more ranks that do next to nothing, and what it was trained with."""
    folder = tmp_path_factory.mktemp("trained")
    config = studio.config(**HELD, rank=2)
    list(studio.run(config, folder))
    path = folder / "checkpoints" / checkpoint.name_of(HELD["steps"])
    generator = torch.Generator().manual_seed(0)

    def padded(layer):
        size = float(layer.delta().norm())
        down, up = (torch.randn(6, layer.down.shape[1], generator=generator), torch.randn(layer.up.shape[0], 6, generator=generator))
        scale = 1e-4 * size / float((up @ down).norm())
        return LowRank(torch.cat([layer.down, down]), torch.cat([layer.up * layer.alpha / layer.rank, up * scale], dim=1), 8.0)

    adapter = checkpoint.adapter(path)
    state = checkpoint.state(path)
    wide = replace(adapter, layers={name: padded(layer) for name, layer in adapter.layers.items()})
    return probe.Subject(wide, build(TrainConfig, state.settings), sources.find("demo-sdxl"), studio.images, state.images)


def searched(studio, subject, folder, tolerance=probe.TOLERANCE, asked=None):  # noqa: F811
    search = probe.probe(subject, folder, studio.cache, tolerance=tolerance, requests=asked or Asked(), device=torch.device("cpu"))
    return returned(search)


def test_ranks_that_do_nothing_are_taken_away_and_the_loss_is_that_of_the_file(studio, trained, tmp_path, of_kind):  # noqa: F811
    found = searched(studio, trained, tmp_path / "probe")
    assert found.adapter is not None and found.adapter.layers.keys() == trained.adapter.layers.keys()
    assert max(layer.rank for layer in found.adapter.layers.values()) <= 2
    report = found.report
    gain = report["base_loss"] - report["loss"]
    assert gain > 0 and report["after"]["between"][1] <= probe.TOLERANCE * gain
    assert report["after"]["parameters"] <= report["before"]["parameters"] / 4
    # Whoever trains on from the smaller LoRA begins at the loss that was told.
    from studio.lora import formats

    formats.write(found.adapter, tmp_path / "small.safetensors", dtype="fp32")
    again = studio.config(**{**HELD, "steps": 1, "learning_rate": 1e-12}, rank=2, start_from=str(tmp_path / "small.safetensors"))
    first = of_kind(studio.run(again, tmp_path / "again"), "validation")[0]
    assert first.loss == pytest.approx(report["after"]["loss"], rel=1e-4)


def test_what_may_not_be_lost_is_not_taken(studio, trained, tmp_path):  # noqa: F811
    """With less tolerance no smaller one is chosen, and what was found too much costs more than it may."""
    loose, strict = (searched(studio, trained, tmp_path / str(tolerance), tolerance) for tolerance in (0.5, 1e-4))
    assert loose.adapter is not None
    kept = trim.size(strict.adapter) if strict.adapter else trim.size(trained.adapter)
    assert trim.size(loose.adapter) < kept
    for report, tolerance in ((loose.report, 0.5), (strict.report, 1e-4)):
        allowed = tolerance * (report["base_loss"] - report["loss"])
        assert report["tried"] and all(one["equal"] == (one["between"][1] <= allowed) for one in report["tried"])


def test_trimming_keeps_what_resizing_keeps(trained):
    cut = trim.Trim.of(trained.adapter)
    for energy in (0.5, 0.9, 0.9999):
        made = returned(resize(trained.adapter, "x", energy=energy))
        smaller = cut.keeping(energy)
        assert {path: layer.rank for path, layer in smaller.layers.items()} == {path: layer.rank for path, layer in made.adapter.layers.items()}
        assert cut.residual(smaller) == pytest.approx(made.report["residual"], rel=1e-6)
    assert cut.keeping(1.0).layers == trained.adapter.layers


@pytest.mark.parametrize("more", [{"network": "adalora", "final_rank": 1.0}, {"lora_plus_ratio": 4.0, "rank_stabilized": True, "dropout": 0.1}])
def test_what_another_network_left_is_measured_as_the_plain_lora_that_it_is(trained, more):
    config = build(TrainConfig, {**trained.config.model_dump(), "rank": 2, "alpha": 2.0, **more})
    made = probe.measuring(replace(trained, config=config))
    assert (made.network, made.rank, made.alpha, made.final_rank, made.lora_plus_ratio, made.rank_stabilized) == ("lora", 8, None, None, 1.0, False)


def test_a_dora_keeps_its_lengths(studio, tmp_path):  # noqa: F811
    list(studio.run(studio.config(**HELD, network="dora"), tmp_path))
    path = tmp_path / "checkpoints" / checkpoint.name_of(HELD["steps"])
    state = checkpoint.state(path)
    adapter = checkpoint.adapter(path)
    subject = probe.Subject(adapter, build(TrainConfig, state.settings), sources.find("demo-sdxl"), studio.images, state.images)
    found = searched(studio, subject, tmp_path / "probe", tolerance=0.2)
    assert found.adapter is not None and trim.size(found.adapter) < trim.size(adapter)
    for name, layer in found.adapter.layers.items():
        whole = adapter.layers[name]
        assert isinstance(layer, Decomposed) and isinstance(whole, Decomposed) and torch.equal(layer.magnitude, whole.magnitude)


def test_a_file_of_which_nothing_is_known_is_measured_by_the_set_alone(studio, trained, tmp_path):  # noqa: F811
    two = replace(studio.images, pictures=studio.images.pictures[:2])
    subject = probe.Subject(trained.adapter, studio.config(steps=1, batch_size=9), trained.base, two, "", two)
    assert probe.measuring(subject).targets == "attention"
    report = searched(studio, subject, tmp_path, tolerance=0.5).report
    assert report["held_out"] == 2 and report["after"]


def test_layers_without_ranks_are_refused_with_the_way_out(trained):
    layer = Kronecker((torch.ones(2, 2),), (torch.ones(4, 4),), 1.0)
    with pytest.raises(FormatError, match="are LoKr, which have no ranks to trim: make a plain LoRA of them first"):
        trim.Trim.of(replace(trained.adapter, layers={"unet.x": layer}))


def test_pictures_that_changed_since_and_too_large_ranks_are_refused(studio, trained, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match="have changed since"):
        searched(studio, replace(trained, images_hash="another"), tmp_path)
    huge = Adapter("sdxl", {"unet.x": LowRank(torch.zeros(600, 4), torch.zeros(4, 600), 1.0)})
    with pytest.raises(InputError, match="rank 600; those above 512 are resized first"):
        probe.measuring(replace(trained, adapter=huge))


def test_a_probe_can_be_cancelled(studio, trained, tmp_path):  # noqa: F811
    with pytest.raises(Cancelled):
        searched(studio, trained, tmp_path, asked=Asked({0: "cancel"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank_probe": True}, "rank_probe needs held-out pictures"), ({"rank_probe": True, "validation_fraction": 0.4, "network": "loha"}, "a loha has none")],
)
def test_a_run_that_cannot_be_probed_is_refused_at_once(settings, message):
    with pytest.raises(SettingsError, match=message):
        build(TrainConfig, {"images": "set", **settings})


@pytest.fixture
def of_kind():
    return lambda events, kind: [event for event in events if event.kind == kind]


assert Studio


def test_a_set_that_does_not_hold_the_new_words_can_measure(studio):  # noqa: F811
    base = sources.find("demo-sdxl")
    said = tuple(replace(picture, caption=f"zib, {picture.caption}") for picture in studio.images.pictures)
    for more in ({}, {"network": "none"}):
        config = studio.config(new_words="zib", **more)
        made, _ = measured_by(config, base, replace(studio.images, pictures=said[:2]), replace(studio.images, pictures=studio.images.pictures[2:]), "known")
        assert [want.caption for want in made.held] == [picture.caption for picture in studio.images.pictures[2:]]
        assert made.config.new_words == ("zib",)
        with pytest.raises(SettingsError, match="'zib' is in no caption"):
            measured_by(config, base, studio.images, studio.images, "")


@pytest.mark.long
def test_new_words_stay_with_the_smaller_file_and_words_alone_have_no_ranks(studio, tmp_path):  # noqa: F811
    config = studio.config(**HELD | {"steps": 2, "new_words": "zib", "trigger": "zib"})
    list(studio.run(config, tmp_path / "run"))
    path = tmp_path / "run" / "checkpoints" / checkpoint.name_of(2)
    adapter, state = checkpoint.adapter(path), checkpoint.state(path)
    known = probe.Subject(adapter, build(TrainConfig, state.settings), sources.find("demo-sdxl"), studio.images, state.images)
    found = searched(studio, known, tmp_path / "known", tolerance=0.5)
    assert found.adapter is None or found.adapter.embeddings.keys() == {"zib"}
    unknown = probe.Subject(adapter, studio.config(batch_size=9), sources.find("demo-sdxl"), studio.images, others=studio.images)
    other = searched(studio, unknown, tmp_path / "unknown", tolerance=0.5)
    assert other.report["base_loss"] != found.report["base_loss"]
    with pytest.raises(InputError, match="new words alone and no layers"):
        searched(studio, replace(known, adapter=replace(adapter, layers={})), tmp_path / "alone")
