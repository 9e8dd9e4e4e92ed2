"""Claims about measuring whole runs within budgets, and about bases that are made up for it."""

import json

import torch

from studio import config as settings
from studio.bench import imagined, memory, rehearsal
from studio.bench.cases import Spec
from studio.families import FAMILIES, sources
from studio.jobs.handlers import base_values

SPEC = {"families": ["sdxl"], "resolutions": [64], "batches": [1], "precisions": ["fp32"], "modes": ["auto"], "tasks": ["memory"], "weights": "demo"}


def test_a_made_up_base_goes_through_a_whole_run_and_leaves_nothing_behind():
    for family in ("sdxl", "flux"):
        with imagined.base(family, sources.BUILTIN / f"demo-{family}") as base:
            config = settings.build(
                settings.TrainConfig, {"base": base.name, "images": "x", "rank": 2, "steps": 1, "resolution": 64, "seed": 1, "save_every": 0}
            )
            found = memory.rehearse(base, config, (64, 128), torch.device("cpu"))
            assert found["seconds"] > 0 and found["planned_parts"]["base"] > 10**6 and found["base_format"] == "full"
        assert base.name not in FAMILIES


def test_the_table_has_a_row_for_every_budget_and_compares_with_all_memory(tmp_path):
    spec = Spec.of(SPEC | {"steps": 1, "budgets": [0.0, 2.0]})
    rows = list(memory.table(spec, tmp_path, torch.device("cpu")))
    assert [row["budget"] for row in rows] == [0.0, 2.0] and not any("error" in row for row in rows)
    lines = memory.text(rows).splitlines()
    assert lines[0].split()[:2] == ["family", "px"] and len(lines) == 3 and lines[1].split()[-1] == "1"


def test_a_rehearsal_is_two_steps_of_the_run_that_is_planned(capsys):
    base = sources.find("demo-sdxl")
    config = settings.build(settings.TrainConfig, {"images": "x", "epochs": 3, "rank": 2, "resolution": 64, "sample_every": 5, "validation_fraction": 0.5})
    config = settings.resolve(config, base.habits["train"])
    job = {"settings": config.model_dump(mode="json"), "base": base_values(base), "size": [64, 64], "device": "cpu"}
    assert rehearsal.main([json.dumps(job)]) == 0
    assert json.loads(capsys.readouterr().out)["speed"] == "eager"
