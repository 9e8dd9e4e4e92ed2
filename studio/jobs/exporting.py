"""Adapter files for others, in the worker: written with their history, proven, and only then given their name."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.config import TrainConfig, build
from studio.errors import FormatError, RunError
from studio.events import Sample, Started
from studio.families.base import Base
from studio.jobs.folder import JobFolder, Manifest
from studio.jobs.spec import Dtype, Format
from studio.library import inspection
from studio.library.files import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from studio.lora.adapter import Adapter
    from studio.lora.provenance import Tags

HISTORY = "history.json"
PREVIEW_SIDE = 768


def adapter_of(source: Path, stored: bool = False) -> "Adapter":
    """The adapter of a file or checkpoint. stored: as the file has its numbers, see `formats.read`."""
    from studio.lora import formats
    from studio.training import checkpoint

    return checkpoint.adapter(source.parent) if checkpoint.is_checkpoint(source.parent) else formats.read(source, stored=stored)


def publish(adapter: "Adapter", target: Path, format: Format, dtype: Dtype, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Write the file, prove it, and only then let it take its name; the report of the proof. Raises FormatError if it fails.

    Vectors of new words, which a PEFT file has no place for, are written apart, and told as `words`.
    """
    from studio.lora import formats, proof
    from studio.lora.header import completed

    if format == "peft" and not adapter.layers:
        raise FormatError(f"{target.name}: there are new words alone, which PEFT files cannot carry; export as kohya, with side files")
    part = target.with_name(f".{target.stem}.new.safetensors")  # an older file of the name stays until the new one is proven
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        given = dataclasses.replace(adapter, embeddings={}) if format == "peft" else adapter
        formats.write(given, part, format=format, dtype=dtype, metadata=completed(metadata, adapter, target.stem))
        report = proof.prove(part, given, format)
        if not report["passed"]:
            raise FormatError(f"{target.name} was not published: {report['faults'][0]}")
        part.replace(target)
        apart = words_apart(adapter, target, dtype, metadata) if format == "peft" else []
    except OSError as error:
        raise RunError(f"{target} cannot be written ({error.strerror}); what it is made from is kept: export it to another place") from error
    except FormatError as error:
        raise FormatError(str(error).replace(part.name, target.name)) from None
    finally:
        part.unlink(missing_ok=True)
    return {**report, "file": target.name, "words": apart}


def words_apart(adapter: "Adapter", target: Path, dtype: Dtype, metadata: Mapping[str, str]) -> list[str]:
    """Write the vectors of new words beside the file, a file each in the folder NAME-words; the names of what was written."""
    import torch

    from studio.lora.formats import embeddings

    number = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    said = {key: value for key, value in metadata.items() if key in ("ss_base_model_version", "modelspec.license", "modelspec.author")}
    folder = target.with_name(f"{target.stem}-words")
    for word in adapter.embeddings:
        folder.mkdir(exist_ok=True)
        embeddings.write(folder / f"{word}.safetensors", adapter, word, number, said)
    return [f"{folder.name}/{word}.safetensors" for word in adapter.embeddings]


def side_files(target: Path, picture: Path | None) -> list[str]:
    """Put beside the file what web UIs and Civitai ask for; the names of what was written."""
    from studio.container import read_header
    from studio.lora import cards
    from studio.lora.formats import detect

    header = read_header(target)
    texts = {
        f"{target.stem}.json": cards.card(header.metadata),
        f"{target.stem}.civitai.md": cards.civitai_page(target.stem, detect(header.shapes).family, header.metadata),
    }
    found = []
    if picture is not None:
        out = BytesIO()
        image = _decoded(picture)
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        image.save(out, "PNG")
        write_whole(target.with_name(f"{target.stem}.preview.png"), out.getvalue())
        found.append(f"{target.stem}.preview.png")
    for name, text in texts.items():
        write_whole(target.with_name(name), text.encode())
    return [*found, *texts]


def thumbnail(picture: Path) -> dict[str, str]:
    """The metadata entry with a small picture."""
    from studio.lora.header import THUMBNAIL

    return {THUMBNAIL: inspection.thumbnail(picture)}


def sample_of(folder: JobFolder, step: int) -> Path | None:
    """The first preview picture of a run at that step, or the last one before it."""
    samples = [event for event in folder.read()[0] if isinstance(event, Sample) and event.step <= step]
    newest = next((sample for sample in samples if sample.step == max(one.step for one in samples)), None)
    path = folder.path / newest.path if newest else None
    return path if path and path.is_file() else None


def remember(folder: JobFolder, started: Started, images: str, captions: Sequence[str]) -> None:
    """Keep what later exports of this run say about it, for its pictures and captions may change."""
    keys = ("buckets", "objective", "precision")
    facts = {key: started.facts[key] for key in keys if key in started.facts}
    history = {"started": started.time, "images": images, "captions": list(captions), **facts}
    write_whole(folder.path / HISTORY, json.dumps(history, ensure_ascii=False).encode())


def metadata(folder: JobFolder, manifest: Manifest, base: Base, step: int, tags: "Tags" = "auto") -> dict[str, str]:
    """The metadata of a file made from the checkpoint of that step; the same whenever it is asked for."""
    from studio.lora.provenance import Trained, training_metadata

    path = folder.path / HISTORY
    history: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"started": manifest.created, "images": manifest.name, "captions": []}
    buckets = {_size(size): count for size, count in history.pop("buckets", {}).items()}
    finished = next((one.time for one in folder.checkpoints() if one.step == step), history["started"])
    run = Trained(steps=step, finished=finished, buckets=buckets, **history)
    return training_metadata(build(TrainConfig, manifest.settings), base, run, tags)


def _decoded(picture: Path) -> "Image":
    from studio.data.decoding import decode

    return decode(picture)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)
