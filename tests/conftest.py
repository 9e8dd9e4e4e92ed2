"""What every test may rely on: nothing of the person who runs it, and no network."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.forked import Forks, forkserver
from tests.postgres import Server, server

for name in [name for name in os.environ if name.startswith("STUDIO_")]:
    del os.environ[name]  # settings of the person who runs the tests are no part of them
os.environ["STUDIO_OFFLINE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
FIRST = ("tests/generation/test_effect.py", "tests/test_architecture.py::test_pyright", "tests/jobs/test_ray.py", "tests/bench/test_bench.py")
LEAVING_SECONDS = 60.0  # for what was asked to end with the last test


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests run when asked for with -m, GPU tests where there is a card; those that take a minute begin, so that none is waited for alone."""
    if not config.getoption("-m"):
        left = [item for item in items if item.get_closest_marker("long") or item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.fixture(autouse=True, scope="session")
def _no_process_stays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers outlive whoever started them, so a test that forgets one leaves a gigabyte behind for minutes: the last test fails then."""
    yield
    left = [process for process in psutil.process_iter() if _works_in(process, tmp_path_factory.getbasetemp())]
    _, stray = psutil.wait_procs(left, timeout=LEAVING_SECONDS)
    told = [" ".join(process.cmdline()) for process in stray if process.is_running()]
    for process in stray:
        process.kill()
    assert not told, f"still running after the tests: {told}"


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return any(str(folder) in argument for argument in process.cmdline())
    except psutil.Error:
        return False


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> Iterator[None]:
    """What the modules before imported and keep is not looked through again: every run of the loop collects garbage twice, half a second each time."""
    gc.collect()
    gc.freeze()
    yield


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Processes of the studio that start at once; none is left after the tests."""
    found = forkserver()
    yield found
    found.end()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server of these tests' own."""
    with server() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'studio.db'}"
    return request.getfixturevalue("postgres").database()
