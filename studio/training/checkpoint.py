"""Save and resume: everything a run needs to go on as if it had never stopped.

A checkpoint is a folder `step-000200` with the adapter in fp32, one file of tensors for every carried part (the optimizer's
memory, the moving average, see carried.py), the state, and a manifest of their hashes written last. It takes its name only
when all of it is on the disk and read back. No pickles.
"""

import builtins
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import RunError
from studio.killpoints import reached
from studio.lora import exact
from studio.lora.adapter import Adapter, tensors

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
ADAPTER, OPTIMIZER, STATE, MANIFEST = "adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
ALONE = f"holds the LoRA alone, as older checkpoints do; resume from a newer one, or start a new run from its {ADAPTER}"
LASTING = frozenset({ADAPTER, STATE})  # what `thin` leaves
list_ = builtins.list  # `list` is a verb of this module
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class State:
    """Where a run stands. Random draws need no state: they are keyed by seed, batch and item.

    A field with a default came later than the first checkpoints, which are read with it.
    """

    step: int
    family: str
    images: str  # hash of pictures and captions
    settings: Mapping[str, Any]
    skipped: int = 0  # steps whose loss was not finite
    loss_scale: float = 1.0
    scaled_steps: int = 0  # since the loss scale last changed
    micro: int = 0  # pictures at once after memory ran out; 0 is a whole batch
    in_a_row: int = 0  # of the skipped steps, up to this one
    origin: Mapping[str, Any] = field(default_factory=dict)  # what else the steps depend on, see lineage.py
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # JSON values of the carried parts, by their names


@dataclass(frozen=True)
class Stored:
    """A checkpoint on disk; sha256 and bytes are those of its adapter file."""

    path: Path
    step: int
    sha256: str
    bytes: int
    files: Mapping[str, Mapping[str, Any]] = field(repr=False, default_factory=dict)
    best: bool = False  # has the lowest held-out loss of its run so far

    @property
    def adapter(self) -> Path:
        return self.path / ADAPTER

    @property
    def whole(self) -> bool:
        """Whether a run can go on from it: it has not been thinned."""
        return OPTIMIZER in self.files


def save(folder: Path, state: State, adapter: Adapter, parts: "Mapping[str, Mapping[str, Tensor]]", *, best: bool = False) -> Stored:
    """Write the checkpoint of a step under `folder`, replacing one of the same step.

    parts: tensors by name, of "optimizer" and of whatever else the run carries; each part becomes a file.
    Raises RunError if a weight is not finite or the disk refuses; what was there before stays.
    """
    from safetensors.torch import save as to_bytes

    _refuse_broken(adapter, state.step)
    final = folder / name_of(state.step)
    part = folder / f"{final.name}.part-{uuid.uuid4().hex}"
    try:
        part.mkdir(parents=True)
        weights, words = exact.flattened(adapter)
        contents = {
            ADAPTER: to_bytes(weights, {"format": "lora-studio checkpoint", "family": adapter.family, **words}),
            **{part_file(part): to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in held.items()}) for part, held in parts.items()},
            STATE: json.dumps(asdict(state), indent=1).encode(),
        }
        files = {name: _write(part / name, content) for name, content in contents.items()}
        manifest = {"schema": SCHEMA, "step": state.step, "config": digest(state.settings), "images": state.images, "files": files} | (
            {"best": True} if best else {}
        )
        _write(part / MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync(part)
        _publish(part, final)
    except OSError as error:
        raise RunError(f"{final}: the checkpoint cannot be written ({error.strerror or error}); earlier ones are untouched: free space and resume") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return check(final)


def list(folder: Path) -> tuple[Stored, ...]:
    """Complete checkpoints, oldest first, by manifest and sizes; `verify` reads one in full before it is used."""
    found = []
    for path in folder.glob("step-*"):
        if _NAME.fullmatch(path.name):
            try:
                found.append(check(path))
            except RunError:
                continue  # a broken one is no checkpoint; the next save of its step replaces it
    return tuple(sorted(found, key=lambda stored: stored.step))


def latest(folder: Path) -> Stored | None:
    """The last checkpoint whose files are what the manifest says."""
    for stored in reversed(list(folder)):
        try:
            return verify(stored.path)
        except RunError:
            continue  # fall back to the one before
    return None


def usable(path: Path) -> tuple[Stored, "list_[str]"]:
    """The checkpoint, or the newest before it that is whole and can be resumed from; and what is wrong with those passed over.

    Raises RunError if there is none, or if the one that is meant is in order and holds the LoRA alone.
    """
    wrong: list_[str] = []
    number = step_of(path)
    earlier = sorted((other for other in path.parent.glob("step-*") if -1 < step_of(other) < number), key=step_of, reverse=True)
    for found in (path, *earlier):
        try:
            stored = verify(found)
        except RunError as error:
            wrong.append(str(error).replace(str(found), found.name).partition(";")[0])
            continue
        if stored.whole:
            return stored, wrong
        if not wrong:
            raise RunError(f"{path}: {ALONE}")
        wrong.append(f"{found.name} holds the LoRA alone")
    raise RunError(f"no checkpoint in {path.parent} can be resumed from: {'; '.join(wrong)}; start a new run from its last LoRA")


def name_of(step: int) -> str:
    """The name of a step's checkpoint folder."""
    return f"step-{step:06d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name; -1 for another name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def check(path: Path) -> Stored:
    """The checkpoint if its manifest is readable and its files are there in full size. Raises RunError."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["schema"] != SCHEMA:
            raise RunError(f"{path}: was written by a newer version (schema {manifest['schema']}); update the studio")
        files = manifest["files"]
        for name, entry in files.items():
            if (path / name).stat().st_size != entry["bytes"]:
                raise RunError(f"{path}: {name} has not the size it was written with; use an earlier checkpoint")
        return Stored(path, manifest["step"], files[ADAPTER]["sha256"], files[ADAPTER]["bytes"], files, bool(manifest.get("best")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: is no complete checkpoint ({error}); use an earlier one") from error


def verify(path: Path) -> Stored:
    """The checkpoint if every file hashes to what the manifest says. Raises RunError naming the file."""
    stored = check(path)
    for name, entry in stored.files.items():
        if _file_sha256(path / name) != entry["sha256"]:
            raise RunError(f"{path}: {name} has changed since it was written; use an earlier checkpoint")
    return stored


def is_checkpoint(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def adapter(path: Path) -> Adapter:
    """The adapter of a checkpoint, verified, bit-equal to the trained one."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    verify(path)
    with safe_open(path / ADAPTER, "pt") as file:
        words = {"family": state(path).family, **(file.metadata() or {})}
    return exact.rebuilt(load_file(path / ADAPTER), words)


def part(path: Path, name: str) -> "dict[str, Tensor]":
    """The tensors of a carried part; empty if the run had no such part then. Raises RunError if they were given up, see `thin`."""
    from safetensors.torch import load_file

    files = check(path).files
    if OPTIMIZER not in files:
        raise RunError(f"{path}: {ALONE}")
    return load_file(path / part_file(name)) if part_file(name) in files else {}


def part_file(name: str) -> str:
    """The file of a part's tensors."""
    return f"{name}.safetensors"


def state(path: Path) -> State:
    try:
        return State(**json.loads((path / STATE).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path}: its state cannot be read ({error}); use an earlier checkpoint") from error


def sweep(folder: Path) -> None:
    """Remove what an interrupted save left behind; a checkpoint that was about to be replaced gets its name back."""
    for path in folder.glob("step-*.part-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("step-*.old-*"):
        final = path.with_name(path.name.partition(".old-")[0])
        if final.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(final)
    for path in folder.glob("step-*/.part-*"):
        path.unlink(missing_ok=True)
    for stored in list(folder):
        for path in stored.path.iterdir():
            if path.name not in stored.files and path.name != MANIFEST:
                path.unlink()  # disowned by `thin`, whose process died before it could remove it


def retain(folder: Path, keep: int, anchor_every: int, best: int | None = None) -> None:
    """Take the carried parts from all checkpoints but the newest `keep`, those of every `anchor_every` steps, and the step `best`.

    The mark of the best moves with it.
    """
    found = list(folder)
    for stored in found:
        if best is not None and stored.best != (stored.step == best):
            try:
                _rewrite(stored.path, {"best": stored.step == best})
            except OSError:
                return  # see below
    for stored in found[:-keep]:
        if stored.whole and stored.step != best and not (anchor_every and stored.step % anchor_every == 0):
            try:
                thin(stored.path)
            except OSError:
                return  # a full disk cannot even take the shorter manifest: it stays whole until the next save


def thin(path: Path) -> None:
    """Give up all but adapter and state: the manifest disowns it first, so that a crash in between leaves no half checkpoint."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    given_up = [name for name in manifest["files"] if name not in LASTING]
    _rewrite(path, {"files": {name: entry for name, entry in manifest["files"].items() if name in LASTING}})
    reached("checkpoint-thin")
    for name in given_up:
        (path / name).unlink(missing_ok=True)


def _rewrite(path: Path, changes: Mapping[str, Any]) -> None:
    """Give a checkpoint's manifest other entries, all or nothing. Raises OSError."""
    manifest = json.loads((path / MANIFEST).read_bytes()) | changes
    fresh = path / f".part-{uuid.uuid4().hex}"
    try:
        _write(fresh, json.dumps(manifest, indent=1).encode())
        fresh.replace(path / MANIFEST)
        _sync(path)
    finally:
        fresh.unlink(missing_ok=True)


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _refuse_broken(adapter: Adapter, step: int) -> None:
    for path, layer in adapter.layers.items():
        if not all(bool(tensor.isfinite().all()) for tensor in tensors(layer)):
            raise RunError(f"step {step}: the weights of {path} are not finite; lower the learning rate and resume from an earlier checkpoint")
    for word, vectors in adapter.embeddings.items():
        if not all(bool(tensor.isfinite().all()) for tensor in vectors.values()):
            raise RunError(f"step {step}: the vectors of {word} are not finite; lower word_learning_rate and resume from an earlier checkpoint")


def _write(path: Path, content: bytes) -> dict[str, Any]:
    """Write, flush to the disk, read back: the manifest's entry. Raises OSError."""
    with path.open("xb") as file:
        file.write(content)
        reached("checkpoint-file")
        file.flush()
        os.fsync(file.fileno())
    expected = hashlib.sha256(content).hexdigest()
    if _file_sha256(path) != expected:
        raise OSError(f"{path.name} reads back differently from what was written")
    return {"sha256": expected, "bytes": len(content)}


def _publish(part: Path, final: Path) -> None:
    """Give the finished folder its name; an older one of that name leaves first."""
    reached("checkpoint-rename")
    if final.exists():
        old = final.with_name(f"{final.name}.old-{uuid.uuid4().hex}")
        final.rename(old)
        reached("checkpoint-swap")
        part.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        part.rename(final)
    _sync(final.parent)
    reached("checkpoint-named")


def _sync(folder: Path) -> None:
    """Flush a folder's entries; Windows cannot and need not."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
