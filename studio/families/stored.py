"""The weights of a base as they lie on the disk, one tensor at a time, whatever files they are in.

Names are diffusers' behind the part: `unet.conv_in.weight`, `text_encoder.text_model.encoder.layers.0.mlp.fc1.bias` (`text_model` always).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import metadata
from studio.errors import BaseError, FormatError
from studio.families import checkpoints, get
from studio.families.base import Base
from studio.families.layout import Section, prefixed

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_CLIP_INNER = ("encoder.layers.", "embeddings.", "final_layer_norm.")  # transformers 5 leaves out `text_model.` before these


@dataclass(frozen=True)
class Slot:
    """A tensor of a file and the tensors of parts that are in it; none for markers, position ids and other things that are not weights."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    section: Section | None = None

    def join(self, pieces: "Mapping[str, Tensor]") -> "Tensor":
        """The file's tensor from its pieces."""
        assert self.section is not None
        n = len(self.section.part) + 1
        return self.section.to_file({part[n:]: pieces[part] for part in self.parts})[self.name.removeprefix(self.section.prefix)]

    def split(self, tensor: "Tensor") -> "dict[str, Tensor]":
        """The pieces in the file's tensor."""
        assert self.section is not None
        found = self.section.from_file({self.name.removeprefix(self.section.prefix): tensor})
        return {f"{self.section.part}.{name}": piece for name, piece in found.items()}


@dataclass(frozen=True)
class Stored:
    """A slot that exists: its file and its number format as the header calls it."""

    slot: Slot
    file: Path
    dtype: str


class Weights:
    """Tensors of a base, read when asked for. `shapes` and `dtypes` are by the names of the parts' tensors."""

    def __init__(self, stored: Sequence[Stored]) -> None:
        self.stored = tuple(stored)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._homes: dict[str, Stored] = {}
        self._open: dict[Path, Any] = {}
        self._last: tuple[Stored | None, dict[str, Tensor]] = (None, {})
        for one in stored:
            for name, shape in _shapes(one.slot).items():
                if name in self._homes:
                    raise BaseError(f"{one.file.name}: tensor {name} occurs twice; the model is broken")
                self._homes[name], self.shapes[name], self.dtypes[name] = one, shape, one.dtype

    def read(self, name: str) -> "Tensor":
        """One tensor of a part, in the number format it is stored in. Neighbours in the same stored tensor come cheaply next."""
        home = self._homes[name]
        if self._last[0] is not home:
            self._last = (home, home.slot.split(self.raw(home)))
        return self._last[1][name]

    def raw(self, one: Stored) -> "Tensor":
        """The stored tensor as it is."""
        from safetensors import SafetensorError, safe_open

        try:
            if one.file not in self._open:
                self._open[one.file] = safe_open(one.file, framework="pt").__enter__()
            return self._open[one.file].get_tensor(one.slot.name)
        except (SafetensorError, OSError) as error:
            raise BaseError(f"{one.file.name}: cannot be read ({error}); copy or download it again") from None

    def close(self) -> None:
        self._last = (None, {})
        for file in self._open.values():
            file.__exit__(None, None, None)
        self._open.clear()


@contextmanager
def opened(base: Base) -> Iterator[Weights]:
    """The weights of a base. Raises BaseError if a file is missing, broken or holds something that its family has not."""
    try:
        weights = Weights(_of_file(base) if base.path.is_file() else _of_folder(base))
    except FormatError as error:
        raise BaseError(str(error)) from None
    try:
        yield weights
    finally:
        weights.close()


def slots(sections: Sequence[Section], shapes: Mapping[str, tuple[int, ...]]) -> list[Slot]:
    """The tensors of a single file with these sections, for parts of these shapes."""
    found = []
    for section in sections:
        part = section.part + "."
        metas = {name[len(part) :]: _meta(shape) for name, shape in shapes.items() if name.startswith(part)}
        try:
            renamed = section.to_file(metas)
        except KeyError as error:
            raise BaseError(f"{section.part}: holds a tensor {error} that has no name in a single file; is it another kind of model?") from None
        for name, tensor in renamed.items():
            own = tuple(part + inner for inner in section.from_file({name: tensor}))
            found.append(Slot(section.prefix + name, tuple(tensor.shape), own, section))
    return found


def weight_files(folder: Path, part: str) -> list[Path]:
    """The .safetensors files with the weights of a part of a diffusers folder: whole ones before fp16 copies, shards by their index."""
    where = folder / part
    for middle in ("", ".fp16"):
        for index in sorted(where.glob(f"*.safetensors.index{middle}.json")):
            names = sorted(set(_index(index).values()))
            missing = [name for name in names if not (where / name).is_file()]
            if missing:
                raise BaseError(f"{where}: {missing[0]} is missing; is the model folder complete?")
            return [where / name for name in names]
        for stem in ("diffusion_pytorch_model", "model"):
            if (where / f"{stem}{middle}.safetensors").is_file():
                return [where / f"{stem}{middle}.safetensors"]
    raise BaseError(f"{where}: has no .safetensors weights; download the model again in that format")


def _index(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BaseError(f"{path}: is no index of shards; download the model again") from None


def _of_file(base: Base) -> list[Stored]:
    header = metadata.read_header(base.path)
    sections = get(base.family).sections(header.shapes.keys())
    found = []
    for name, shape in header.shapes.items():
        section = next((one for one in sections if name.startswith(one.prefix)), None)
        found.append(Stored(_slot(base.path, name, shape, header.dtypes[name], section), base.path, header.dtypes[name]))
    if base.vae is None:
        return found
    return [*(one for one in found if one.slot.section is None or one.slot.section.part != "vae"), *_other_vae(base.vae)]


def _of_folder(base: Base) -> list[Stored]:
    facts = get(base.family).facts
    found: list[Stored] = []
    for part in (facts.denoiser, *facts.text_encoders):
        for file in weight_files(base.path, part):
            found += _of_part(file, part)
    if base.vae is not None:
        return [*found, *_other_vae(base.vae)]
    return [*found, *(one for file in weight_files(base.path, "vae") for one in _of_part(file, "vae"))]


def _other_vae(vae: Path) -> list[Stored]:
    """The VAE that is named instead of the base's own: a folder, a file of its own, or a checkpoint that has one."""
    if vae.is_dir():
        folder, part = (vae.parent, vae.name) if (vae / "config.json").is_file() else (vae, "vae")
        return [one for file in weight_files(folder, part) for one in _of_part(file, "vae")]
    header = metadata.read_header(vae)
    if any(name.startswith("encoder.down_blocks.") for name in header.shapes):
        return _of_part(vae, "vae")
    prefix = next((prefix for prefix in (checkpoints.VAE, "vae.") if any(name.startswith(prefix) for name in header.shapes)), "")
    section = Section(prefix, "vae", checkpoints.vae_to_ldm, checkpoints.vae_from_ldm)
    names = [name for name in header.shapes if name.startswith(prefix)]
    return [Stored(_slot(vae, name, header.shapes[name], header.dtypes[name], section), vae, header.dtypes[name]) for name in names]


def _of_part(file: Path, part: str) -> list[Stored]:
    """The tensors of a file of a diffusers folder."""
    header = metadata.read_header(file)
    flat = not any(name.startswith("text_model.") for name in header.shapes)
    plain, inner = prefixed("", part), prefixed("", part, "text_model.")
    found = []
    for name, shape in header.shapes.items():
        section = inner if flat and name.startswith(_CLIP_INNER) else plain
        found.append(Stored(_slot(file, name, shape, header.dtypes[name], section), file, header.dtypes[name]))
    return found


def _slot(file: Path, name: str, shape: tuple[int, ...], dtype: str, section: Section | None) -> Slot:
    if section is None or dtype not in FLOATS:
        return Slot(name, shape, ())
    try:
        parts = tuple(f"{section.part}.{inner}" for inner in section.from_file({name.removeprefix(section.prefix): _meta(shape)}))
    except (KeyError, ValueError, RuntimeError):
        raise BaseError(f"{file.name}: holds a tensor {name!r} that this architecture has not; is it another kind of model?") from None
    return Slot(name, shape, parts, section if parts else None)


def _shapes(slot: Slot) -> dict[str, tuple[int, ...]]:
    return {name: tuple(piece.shape) for name, piece in slot.split(_meta(slot.shape)).items()} if slot.parts else {}


def _meta(shape: tuple[int, ...]) -> "Tensor":
    import torch

    return torch.empty(shape, device="meta")
