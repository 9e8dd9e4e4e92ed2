"""Captioning of an image set, in the worker; what was there before is kept, so that it can be undone."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from studio.config import build
from studio.data.captions import caption_files, caption_of
from studio.data.images import regular_files
from studio.errors import Cancelled
from studio.events import Event, Finished, Loading, Started, Step, Warned
from studio.jobs.spec import CaptionConfig
from studio.library.files import write_whole

if TYPE_CHECKING:
    from studio.jobs.handlers import Work

CHANGES = "captions.jsonl"  # in the job's folder: {"picture", "before", "after"}, written before the caption itself


def caption(work: "Work") -> Iterator[Event]:
    """A caption for every picture that has none, or for all; each is in its place as soon as it is made."""
    yield Loading(phase="starting")
    from studio.data.captioning import open_model
    from studio.data.decoding import decode
    from studio.data.images import read_set

    config = build(CaptionConfig, work.manifest.settings)
    work.warm.free()
    pictures = read_set(Path(work.manifest.paths["images"])).pictures
    wanted = [picture for picture in pictures if config.replace or not picture.caption]
    yield Loading(phase="Loading the caption model")
    captioner = open_model(config.model, work.warm.device, bool(os.environ.get("STUDIO_OFFLINE"))) if wanted else None
    yield Started(total=len(wanted), facts={"pictures": len(pictures), "kept": len(pictures) - len(wanted)})
    made = 0
    for number, picture in enumerate(wanted, 1):
        if work.requests.cancelled():
            raise Cancelled
        began = time.perf_counter()
        text = captioner.caption(decode(picture.path), config.prompt, config.max_tokens) if captioner else ""
        if text:
            _write(work.folder.path / CHANGES, picture.path, text)
            made += 1
        else:
            yield Warned(message=f"{picture.name}: the model had nothing to say")
        yield Step(step=number, total=len(wanted), seconds=time.perf_counter() - began)
    yield Finished(step=len(wanted), result={"captioned": made, "kept": len(pictures) - len(wanted)})


def undo(folder: Path, images: Path) -> int:
    """Put back what a caption job changed, but for captions that somebody changed since; how many were put back."""
    changes = folder / CHANGES
    told = [json.loads(line) for line in changes.read_text(encoding="utf-8").splitlines()] if changes.is_file() else []
    back = 0
    for change in reversed(told):
        picture = images / change["picture"]
        beside = _beside(picture)
        if picture.is_file() and beside is not None and beside.read_text(encoding="utf-8") == change["after"]:
            if change["before"] is None:
                beside.unlink()
            else:
                write_whole(beside, change["before"].encode())
            back += 1
    return back


def _write(changes: Path, picture: Path, text: str) -> None:
    beside = _beside(picture)
    before = beside.read_bytes().decode("utf-8", errors="replace") if beside else None
    with open(changes, "a", encoding="utf-8") as file:
        file.write(json.dumps({"picture": picture.name, "before": before, "after": text}) + "\n")
    write_whole(beside or picture.with_suffix(".txt"), text.encode())


def _beside(picture: Path) -> Path | None:
    return caption_of(picture.name, caption_files({path.name: path for path in regular_files(picture.parent)}))


HANDLERS: "dict[str, Callable[[Work], Iterator[Event]]]" = {"caption": caption}
