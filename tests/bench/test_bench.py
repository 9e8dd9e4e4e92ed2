"""Claims about the benchmark: every way to run a step does the same step, and a table goes on where it stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from studio import families
from studio.bench import floor, report, subjects, training, whole
from studio.bench.__main__ import measured
from studio.bench.cases import Case, Spec
from studio.errors import SettingsError
from studio.families.base import Base, Components
from studio.families.parts import CONFIGS

SPEC = {"families": ["sdxl", "flux"], "resolutions": [64], "batches": [2], "precisions": ["fp32"], "modes": ["plain", "eager", "run"]}
SPEC |= {"tasks": ["train"], "weights": "demo", "steps": 1}


def bench(spec: dict, out: Path) -> list[dict]:
    command = [sys.executable, "-m", "studio.bench", json.dumps(spec | {"json": True, "out": str(out)})]
    found = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


def test_the_studio_takes_the_steps_of_a_plain_loop_and_a_table_is_filled_over_several_calls(tmp_path, monkeypatch):
    begun = bench(SPEC | {"families": ["sdxl"], "modes": ["plain", "eager"]}, tmp_path)
    kept = (tmp_path / report.ROWS).read_text().splitlines()
    (tmp_path / report.ROWS).write_text("\n".join([kept[0], kept[1][:40]]))
    monkeypatch.setattr(training, "BLOCKS", 1)  # one measurement will do: no figure is compared with another
    monkeypatch.setattr(whole, "SETTLED", 1)
    rows = list(measured(Spec.of(SPEC), tmp_path, torch.device("cpu")))
    assert [row["mode"] for row in rows] == SPEC["modes"] * 2
    assert rows[0] == begun[0], "a finished row was measured again"
    assert rows[1]["key"] == begun[1]["key"] and rows[1]["seconds"] != begun[1]["seconds"]
    for row in report.compared(rows):
        assert row["seconds"] > 0 and row["mfu_percent"] > 0 and row["floor_seconds"] < row["seconds"]
        if row["mode"] == "run":
            phases = row["phases"]
            assert row["times_plain"] > 0 and {"Reading captions", "Encoding pictures", "First step"} <= set(phases)
            assert sum(phases.values()) == pytest.approx(row["first_step_seconds"], abs=0.05), "every second before step 1 belongs to a phase"
            continue
        assert float(row["loss_difference"]) < 1e-5
        assert len(set(row["losses"])) == len(row["losses"]), "losses that stand still compare nothing"


def test_a_row_that_cannot_be_measured_says_why_and_the_others_stand():
    rows = [{"key": "a", "mode": "plain", "task": "train", "family": "sdxl", "resolution": 64, "batch": 1, "precision": "fp32", "error": "out of memory"}]
    assert "a: out of memory" in report.table(rows)


def test_the_operations_of_a_pass_are_counted_as_by_hand():
    """SDXL at 1024 px and Flux at 1024 px: 6.76 and 74.4 TFLOP a picture, as counted from their layers."""
    for family, expected in (("sdxl", 6.76e12), ("flux", 74.4e12)):
        kind, configs = families.get(family), CONFIGS / family
        parts = {kind.facts.denoiser: subjects.skeleton(kind, configs)}
        base = Base("full-size", family, "folder", configs)
        c = Components(base, kind.facts, parts, torch.float32, torch.device("cpu"), kind.facts.objective)
        subject = subjects.Subject(c, kind, 0.0, configs)
        assert floor.forward_flops(subject, 1024) == pytest.approx(expected, rel=0.01)


def test_a_table_without_rows_is_refused():
    with pytest.raises(SettingsError, match="mode 'fast' is unknown; known are plain"):
        Spec.of(SPEC | {"modes": ["fast"]})
    with pytest.raises(SettingsError, match="must be 1 or more"):
        Spec.of(SPEC | {"steps": 0})
    assert Case("train", "sdxl", 64, 2, "fp32", "eager") in list(Spec.of(SPEC).cases())


@pytest.mark.long
def test_drawing_is_measured_side_by_side_with_a_plain_pipeline(tmp_path):
    rows = bench(SPEC | {"families": ["sdxl"], "tasks": ["generate"], "modes": ["eager"]}, tmp_path)
    found = {(row["who"], row["what"]): row for row in rows}
    assert not [row for row in rows if "error" in row] and all(row["seconds"] > 0 for row in rows)
    for what in ("look, no LoRA", "loop of 1, no LoRA", "picture of 1 steps, no LoRA"):
        assert {("plain", what), ("studio eager", what)} <= found.keys()
    assert ("plain", "look, PEFT 4") in found and found["studio eager", "look, live 4"]["layers"] == 88
    assert found["studio eager", "change, baked 4, slider"]["stack_seconds"] > 0 and rows[0]["machine"]["torch"] == torch.__version__
