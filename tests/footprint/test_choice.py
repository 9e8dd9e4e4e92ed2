"""Claims about the way that the plan chooses: its order, what it leaves alone, what it says where nothing fits."""

import re
from dataclasses import replace

import pytest
import torch

from studio.families import away
from studio.footprint import choice, told
from studio.footprint.choice import choose, ways
from studio.footprint.estimate import SAMPLES, Card, Way, blocks
from studio.training import speed
from tests.footprint.test_estimate import FULL, job, loaded

BIG = 64 * 10**9
WORDS = {"new_words": "zib"}


def chosen(name, side, gigabytes, host=BIG, **values):
    one = job(FULL[name], side, int(gigabytes * 1e9), True, precision="bf16", **{"rank": 16} | values)
    return choose(replace(one, card=replace(one.card, host=host)))


@pytest.mark.parametrize(
    ("name", "side", "gigabytes", "way"),
    [
        ("sdxl", 1024, 24, Way(recorded=True)),
        ("sdxl", 1024, 10, Way(recomputed=0.5, recorded=True)),
        ("sdxl", 1024, 8, Way(recomputed=1.0, recorded=True)),
        ("flux", 1024, 48, Way(recorded=True)),
        ("flux", 1024, 30, Way(recomputed=1.0, recorded=True)),
    ],
    ids=str,
)
def test_the_fastest_way_that_fits_is_taken(name, side, gigabytes, way):
    found = chosen(name, side, gigabytes)
    assert found.way == way and found.fits and not found.notes


def test_a_base_that_does_not_fit_waits_in_main_memory_or_is_rounded_where_there_is_too_little_of_it():
    found = chosen("flux", 1024, 24)
    assert found.way.format == "full" and 0 < found.way.offload < 0.5 and found.way.recorded
    assert chosen("flux", 1024, 16).way.offload > found.way.offload
    poor = chosen("flux", 1024, 20, host=4 * 10**9)
    assert (
        poor.way == Way("int8", 1.0)
        and poor.fits
        and re.fullmatch(r"the base is kept in int8, which fits 20.0 GB; with \d+\.\d GB of free main memory it could keep all its bits", poor.notes[0])
    )
    assert poor.applied(job(FULL["flux"]).config).base_format == "int8"


def test_blocks_that_wait_get_a_buffer_more_where_it_fits():
    given = {"block_offload": 0.5, "gradient_checkpointing": True, "base_format": "full"}
    rich = chosen("sdxl", 1024, 12, **given)
    assert rich.way.buffers == away.ROOMY > away.SLOTS
    least = rich.footprint.peak
    tight = chosen("sdxl", 1024, least / 1e9 - 0.01, **given)
    assert tight.fits and tight.way == replace(rich.way, buffers=away.SLOTS)
    more = rich.footprint.phases["training"]["base"] - tight.footprint.phases["training"]["base"]
    one = job(FULL["sdxl"], 1024, BIG, True, precision="bf16", rank=16)
    assert more == max(size for name, size in blocks(one, rich.way).items() if name in away.chosen(blocks(one, rich.way), 0.5))
    assert chosen("sdxl", 1024, 24, block_offload=0.0).way.buffers == away.SLOTS


def test_ways_are_tried_in_the_stated_order():
    found = list(ways(job(FULL["flux"], 1024, 10**9, True, precision="bf16")))
    assert found[:3] == [replace(found[0], recomputed=share) for share in (0.0, 0.5, 1.0)] and found[0].format == "full"
    formats = [way.format for way in found if not way.offload]
    assert formats == sorted(formats, key=["full", "int8", "nf4"].index)
    shares = [way.offload for way in found if way.format == "full" and way.offload]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_settings_that_are_given_stay_as_they_are():
    found = chosen("flux", 1024, 24, base_format="nf4", gradient_checkpointing=True, block_offload=0.0)
    assert found.way == Way("nf4", 1.0) and not found.notes
    config = job(FULL["flux"], base_format="nf4", block_offload=0.0).config
    assert found.applied(config) == config
    tight = chosen("flux", 1024, 24, gradient_checkpointing=False)
    assert tight.way.recomputed == 0.0
    eager = chosen("sdxl", 1024, 24, speed="eager")
    assert not eager.way.recorded
    impossible = chosen("flux", 1024, 12, base_format="full", block_offload=0.0)
    assert impossible.way.format == "full" and not impossible.way.offload and not impossible.fits
    assert impossible.notes[0].endswith("leave base_format and block_offload empty, then it fits")


def test_the_default_format_keeps_its_name_so_that_runs_go_on():
    config = job(FULL["sdxl"]).config
    assert config.base_format == "auto" and chosen("sdxl", 1024, 24).applied(config).base_format == "auto"


def test_where_nothing_fits_one_line_says_what_is_needed_and_what_would_fit():
    found = chosen("sdxl", 1536, 2.5, batch_size=2)
    [note] = found.notes
    assert not found.fits and "\n" not in note
    need, budget = re.search(r"takes at least (\d+\.\d) GB and (\d+\.\d) GB may be taken: ", note).groups()
    assert float(need) > float(budget) == 2.5
    tight = chosen("flux", 1024, 4.2)
    side = int(re.search(r"set resolution to (\d+)$", tight.notes[0]).group(1))
    assert side < 1024 and chosen("flux", side, 4.2).fits and not chosen("flux", side + 64, 4.2).fits
    hopeless = chosen("flux", 256, 1)
    assert hopeless.notes[0].endswith("take a smaller base, or a card with more memory")


def test_a_batch_that_does_not_fit_is_taken_one_by_one():
    found = chosen("flux", 1024, 8, batch_size=8)
    assert found.notes[0].endswith("set batch_size to 1 with gradient_accumulation 8") and chosen("flux", 1024, 8).fits


def test_encoders_larger_than_the_budget_run_apart():
    assert chosen("flux", 512, 8).way.apart == {"text"}
    assert not chosen("flux", 512, 16).way.apart


def test_samples_that_do_not_fit_are_said_and_change_nothing():
    found, quiet = chosen("sdxl", 1024, 9, sample_every=50), chosen("sdxl", 1024, 9)
    assert found.way == quiet.way and found.fits and SAMPLES in found.footprint.phases
    assert found.notes[0].startswith("samples take about ")


def test_a_processor_keeps_the_base_whole():
    one = job(FULL["sdxl"], 1024, 8 * 10**9)
    assert all(way.format == "full" and not way.offload and not way.recorded for way in ways(one))


def test_what_nobody_knows_is_planned_as_if_everything_fitted():
    found = choose(job(FULL["flux"], 1024, 0, True, precision="bf16"))
    assert found.way == Way(recorded=True) and found.why == "nobody can say how much memory there is"


def test_the_table_adds_up_and_says_what_was_chosen_and_why():
    found = chosen("sdxl", 1024, 8)
    lines = told.table(found).splitlines()
    peak = next(i for i, line in enumerate(lines) if line.startswith("peak, training"))
    parts = [float(line.split()[-2]) for line in lines[:peak]]
    assert sum(parts) == pytest.approx(float(lines[peak].split()[-2]), abs=0.01 * len(parts))
    text = "\n".join(lines)
    assert "8.00 GB: fits" in text and "chosen: base full, 100% of the blocks recomputed" in text and "why: 100% of the blocks recomputed: " in text
    values = told.values(found)
    assert values["peak"] == found.footprint.peak and values["fits"] and sum(values["phases"]["training"]["parts"].values()) == values["peak"]


def test_every_way_out_that_is_offered_was_tried(monkeypatch):
    tried = []
    real = choice._some_fit
    monkeypatch.setattr(choice, "_some_fit", lambda one: tried.append(one) or real(one))
    chosen("sdxl", 1536, 2.5, batch_size=2)
    assert tried and any(one.config.batch_size == 1 for one in tried)


def test_new_words_keep_the_encoders_that_read_them_in_memory_and_steps_are_not_recorded():
    plain, words, with_t5 = (job(FULL["flux"], 1024, 10**12, True, precision="bf16", rank=16, **more) for more in ({}, WORDS, WORDS | {"word_t5": True}))
    held = [choose(one).footprint.phases["training"].get("text encoders", 0) for one in (plain, words, with_t5)]
    assert held[0] == 0 and held[1] == 2 * sum(one.parameters for one in words.measures.text if one.kept) > 0
    assert held[2] == 2 * sum(one.parameters for one in words.measures.text) > 30 * held[1], "T5 is the largest of them by far"
    assert choose(plain).way.recorded and not choose(words).way.recorded
    assert not choose(job(FULL["flux"], 1024, 10**12, True, precision="bf16", rank=16, masked_loss=True, masked_prior_weight=0.5)).way.recorded
    alone = job(FULL["sdxl"], 1024, 10**12, True, precision="bf16", rank=16, network="none", **WORDS)
    assert not alone.trained and choose(alone).footprint.parameters == 0


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"network": "dora"},
        {"network": "loha"},
        {"init": "olora"},
        {"dropout": 0.1},
        {"optimizer": "lion"},
        {"prior_prediction": True},
        {"preference_beta": 1000.0},
        {"targets": "all-linear"},
        {"rank_stabilized": True, "lora_plus_ratio": 4.0},
    ],
    ids=str,
)
def test_the_plan_and_the_run_agree_on_which_steps_can_be_recorded(values):
    _, config, attached = loaded("sdxl", **values)
    attached.components.device = torch.device("cuda")  # what the run asks first; nothing is moved there
    assert choice.recordable(config, Way(), Card(True)) == (speed._obstacle(attached, config) == "")
