"""A studio on a folder of its own with a worker process, both shared by the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from studio.workspace import Workspace
from tests.forked import Forks

# Few layers: attaching, saving and proving all of them costs more than the steps
SHORT = {"base": "demo-sdxl", "images": "Circles", "resolution": 64, "batch_size": 1, "rank": 2, "target_pattern": "mid_block.*attn2", "seed": 5}


def draw_pictures(folder: Path, n: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        picture = Image.new("RGB", (64, 64), (40 * i, 90, 160))
        ImageDraw.Draw(picture).ellipse((10, 10, 50, 50), fill=(220, 60 + 40 * i, 30))
        picture.save(folder / f"circle{i}.png")
        (folder / f"circle{i}.txt").write_text(f"circle number {i}")
    return folder


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Path]:
    """A data folder with an image set; its workers are ended afterwards."""
    root = tmp_path_factory.mktemp("studio")
    with Workspace.open(root / "data") as studio:
        studio.sets.import_folder("Circles", draw_pictures(root / "circles"), trigger="zqx")
    with forks.as_workers():
        yield root / "data"


@pytest.fixture
def studio(data: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.setenv("STUDIO_DEVICE", "cpu")
    workspace = Workspace.open(data)
    yield workspace
    for job in workspace.jobs.queue():
        workspace.jobs.cancel(job.id)
    # Not close(): the idle worker is left to the next test
    workspace._loop._stop = True
    workspace._loop.wake()
    if workspace._loop._thread is not None:
        workspace._loop._thread.join()
    workspace._dispatcher._lock.release()
