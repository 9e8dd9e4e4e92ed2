"""A database that is not one any more: set aside, rebuilt, said in one sentence."""

from pathlib import Path

import pytest

from studio.library.layout import Layout
from studio.library.repair import set_aside
from studio.workspace import Workspace
from tests.faults import invariants
from tests.faults.conftest import Ground


@pytest.mark.parametrize("where", ["head", "middle"])
def test_a_damaged_database_is_rebuilt_from_the_folders(ground: Ground, where: str) -> None:
    id = ground.train(steps=1)
    assert ground.until_ended(id) == "finished"
    ground.close()
    before = ground.studio.layout.database.read_bytes()
    start = 0 if where == "head" else len(before) // 4
    ground.studio.layout.database.write_bytes(before[:start] + b"\xa5" * (len(before) // 2) + before[start + len(before) // 2 :])
    ground.open()
    assert "database was damaged and is rebuilt" in ground.studio.status().trouble and len(list(ground.data.glob("studio.db.damaged-*"))) == 1
    assert ground.until_ended(id) == "finished"
    assert [row.run for row in ground.studio.library.list()] == [id] and "Circles" in [row.name for row in ground.studio.sets.list()]
    invariants.check(ground.studio)


def test_a_sound_database_is_left_alone(tmp_path: Path) -> None:
    Workspace.open(tmp_path).close()
    layout = Layout(tmp_path)
    assert set_aside(layout.database, tmp_path / "lock") == "" and layout.database.is_file()
