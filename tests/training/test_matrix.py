"""That every choice of network, start, optimizer, schedule, objective and base format is tried: all of them in the matrix, each once in CI."""

import typing
from typing import Any, Literal

import pytest

from studio.config.training.memory import Memory
from studio.config.training.network import Network
from studio.config.training.objective import FLOW_ONLY, NOISE_ONLY, Objective
from studio.config.training.optimization import Optimization
from studio.config.training.showing import Showing

from . import matrix, test_choices, test_networks
from .test_loop import told

# A choice that says how something looks or how fast it goes is no choice of what is learned.
# Network none trains new words and no layers: test_new_words has it, and words_table its figures.
ELSEWHERE = {("network", "none"), ("init", "default"), ("optimizer", "adamw"), ("base_format", "auto"), ("base_format", "full"), ("caption_lines", "join")}
REST: list[tuple[str, dict[str, Any]]] = [
    ("demo-sdxl", {"lr_schedule": "linear", "init": "gaussian", "targets": "all-linear"}),
    ("demo-flux", {"lr_schedule": "cosine", "init": "olora", "targets": "attention+mlp"}),
    ("demo-sdxl", {"lr_schedule": "cosine-restarts", "base_format": "int8"}),
    ("demo-flux", {"lr_schedule": "polynomial", "base_format": "int8", "loss": "huber", "huber_schedule": "constant"}),
]


def choices() -> set[tuple[str, Any]]:
    """(setting, value) of everything that is chosen by name."""
    found = set()
    for group in (Network, Objective, Optimization, Memory, Showing):
        for name, field in group.model_fields.items():
            kinds = [field.annotation, *typing.get_args(field.annotation)]
            for kind in kinds:
                if typing.get_origin(kind) is Literal and name != "speed":
                    found |= {(name, value) for value in typing.get_args(kind)}
    return found - ELSEWHERE


def named(settings: list[dict[str, Any]], *, plain: bool) -> set[tuple[str, Any]]:
    """The choices that these runs make; with `plain`, a run that names none makes the usual one."""
    usual = {(name, group.model_fields[name].get_default()) for group in (Network, Objective, Optimization, Memory) for name in group.model_fields}
    usual = {pair for pair in usual if isinstance(pair[1], str)}
    made = {(name, value) for one in settings for name, value in one.items() if isinstance(value, str)}
    made |= {("huber_schedule", "snr") for one in settings if one.get("loss") == "huber" and "huber_schedule" not in one}
    made |= {("timestep_sampling", "logit-normal") for one in settings if "timestep_mean" in one}
    return made | (usual if plain else set())


@pytest.mark.parametrize("base", matrix.BASES)
def test_the_matrix_holds_every_choice_on_both_bases(base):
    foreign = NOISE_ONLY if base == "demo-flux" else FLOW_ONLY
    wanted = {pair for pair in choices() if pair[0] not in foreign}
    assert wanted - named([case.settings for case in matrix.cases() if case.base == base], plain=True) == set()


def test_ci_trains_with_every_choice_once():
    """Whoever adds a choice adds it to a list that runs without a marker."""
    ci = [values for _, values in test_choices.CASES] + [test_networks.NETWORKS[name] for _, name in test_networks.CI]
    ci += [{"base_format": "nf4"}, {"base_format": "fp8"}, *(values for _, values in REST)]  # the first two: test_networks
    assert choices() - named(ci, plain=True) == set()


@pytest.mark.parametrize(("base", "values"), REST, ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())))
def test_what_no_other_test_trains_takes_its_steps(studio, tmp_path, base, values):
    steps = told(studio.run(studio.config(base, **values, steps=2), tmp_path))
    assert [step[0] for step in steps] == [1, 2] and all(step[1] > 0 for step in steps)


CASES = [case for case in matrix.cases() if case.group not in ("sizes", "rates", "files") and case.images == "woodcut"]


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_lowers_the_loss_on_held_out_pictures_and_another_program_reads_the_same(tmp_path, case):
    row = matrix.measured(case, 40, "cpu", tmp_path)
    assert row["lowered"], f"{row['before']} -> {row['after']}, {row['between']}"
    if case.group != "full":
        read = {name: one["worst"] for name, one in row["second"].items() if one["worst"] is not None}
        assert row["own"] <= 1e-6 and read and max(read.values()) < 2e-5


@pytest.mark.long
@pytest.mark.parametrize("base", matrix.BASES)
def test_an_adalora_is_better_than_a_lora_of_its_size_and_a_third_of_the_one_that_it_begins_as(tmp_path, base):
    found = {
        case.title: matrix.measured(case, 100, "cpu", tmp_path) for case in matrix.cases() if (case.group, case.base, case.images) == ("files", base, "woodcut")
    }
    small, equal, large = (found[title] for title in ("AdaLoRA, rank 16 to 4", "LoRA, rank 4", "LoRA, rank 16"))
    assert small["after"] < equal["after"] and small["bytes"] < 1.1 * equal["bytes"]
    assert small["bytes"] < large["bytes"] / 3 and small["before"] - small["after"] > 0.97 * (large["before"] - large["after"])
