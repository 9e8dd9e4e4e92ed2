"""The table of faults in the documentation: whole, and every test it names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "assets" / "docs" / "reliability.md"
# The catalogue's numbers; those between were never given
FAULTS = {f"F{number:02d}" for number in (*range(1, 18), 19, 20, 21, 22, 23, 24, 26, 27, 28, 29, 31, 32, 34, 35, 36, 37, 38, 40)}
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> list[str]:
    return [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and "`tests/" in line]


def functions(path: Path) -> dict[str, bool]:
    """Tests of a file, and whether all of what they run is left out by default."""
    found = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    return {node.name: any(ast.unparse(mark) == "pytest.mark.long" for mark in node.decorator_list) for node in found}


def test_every_fault_has_its_row() -> None:
    assert {found[1] for row in rows() if (found := re.match(r"\| (F\d\d) ", row))} == FAULTS


def test_every_test_that_is_named_is_there_and_long_where_it_is_called_so() -> None:
    for row in rows():
        named = list(NAMED.finditer(row))
        assert named, row
        for found in named:
            tests = functions(ROOT / found[1])
            assert found[2] in tests, f"{found[1]} has no {found[2]}"
            if tests[found[2]]:
                assert row[found.end() :].startswith(" (*long*"), f"{found[2]} is long, which the table does not say"


def test_a_row_whose_test_is_gone_would_be_noticed() -> None:
    assert "test_that_was_never_written" not in functions(ROOT / "tests/faults/test_ends.py")
    assert functions(ROOT / "tests/faults/test_ends.py")["test_workers_and_dispatchers_killed_at_random_times"]
