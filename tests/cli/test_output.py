"""Claims about what the command line prints for people."""

from datetime import datetime

import pytest

from studio.cli.output import details


def test_moments_are_told_as_times_and_programs_get_the_number(capsys: pytest.CaptureFixture[str]) -> None:
    moment = 1_795_580_000.25
    details({"name": "ink", "started": moment, "finished": None, "learning_rate": 0.0001}, as_json=False)
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert datetime.fromisoformat(lines["started"]).timestamp() == int(moment)
    assert lines == {"name": "ink", "started": lines["started"], "learning rate": "0.0001"}
    details({"started": moment}, as_json=True)
    assert "1795580000.25" in capsys.readouterr().out
