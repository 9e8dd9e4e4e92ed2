"""Encode pictures and captions once and keep them as safetensors; hand out training batches.

A file's name is the hash of every input of what it holds, so a stale entry is never read: it is merely never asked for.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.data import masks
from studio.data.ahead import ahead
from studio.data.buckets import Crop
from studio.data.images import Picture
from studio.errors import BaseError, ImageError, RunError
from studio.events import Event, Loading
from studio.families.base import Base, Components, Conditioning, Family, Part
from studio.killpoints import reached

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

SCHEMA = 1  # raise it when the meaning of a cached tensor changes
WHOLE_BYTES = 64 * 2**20  # files up to here are hashed whole, larger ones by blocks across them
BLOCK_BYTES, N_BLOCKS = 64 * 1024, 256
FOLDERS: Mapping[Part, tuple[str, ...]] = {  # beginnings of the folders' names in a base
    "vae": ("vae",),
    "text": ("text_encoder", "tokenizer"),
    "denoiser": ("unet", "transformer", "scheduler"),
}
RESIDENT_BYTES = 2**30  # tensors kept on the device between batches; the rest is read from disk each time


Encode = Callable[[Components, Sequence["Want"], Sequence[Any]], "list[dict[str, Tensor]]"]  # what was wanted, with what was made ready of it


@dataclass(frozen=True)
class Batch:
    """latents (B, C, h, w) fp32; conditioning batch first; sizes (B, 6) fp32, pixels; masks (B, 1, h, w) fp32, how much each place counts."""

    latents: "Tensor"
    conditioning: Conditioning
    sizes: "Tensor"
    names: tuple[str, ...]
    masks: "Tensor | None" = None


@dataclass(frozen=True)
class Want:
    """One picture of one batch: as cut, mirrored or not, with its caption or the empty one."""

    picture: Picture
    crop: Crop
    mirrored: bool
    caption: str
    masked: bool = False
    weight: float = 1.0  # of its loss
    prior: bool = False  # its target is what the base alone predicts
    rival: Picture | None = None  # the worse picture of a pair, cut and mirrored alike

    @property
    def against(self) -> "Want | None":
        return replace(self, picture=self.rival, rival=None) if self.rival else None


@dataclass
class Cache:
    """Cached encodings of one base. `dtype` is that of the text encoders; latents are always fp32.

    apart: parts too large for the device. Text encoders then come to it block by block, the VAE works on the CPU.
    """

    folder: Path
    base: Base
    family: Family
    dtype: "torch.dtype"
    device: "torch.device"
    apart: frozenset[str] = frozenset()
    _identities: dict[str, str] = field(default_factory=dict, repr=False)
    _resident: "dict[str, dict[str, Tensor]]" = field(default_factory=dict, repr=False)
    _resident_bytes: int = 0

    def fill(self, wants: Sequence[Want]) -> Iterator[Event]:
        """Encode what is missing. The encoders are loaded only if something is, one kind at a time, and freed afterwards.

        Raises ImageError naming the picture if one cannot be encoded to finite numbers.
        """
        captions = {self.text_key(want.caption): want for want in wants}
        latents = {self.latent_key(want): want for want in wants}
        yield from self._fill("text", "Reading captions", captions, lambda want: want.caption, self._encode_captions)
        yield from self._fill("vae", "Encoding pictures", latents, pixels, self._encode_pictures)
        yield from self._fill_masks({self.mask_key(want): want for want in wants if want.masked})

    def _fill_masks(self, wants: Mapping[str, Want]) -> Iterator[Event]:
        missing = {key: want for key, want in wants.items() if not _valid(self._path(key))}
        for done, (key, want) in enumerate(missing.items(), start=1):
            height, width = self._read(self.latent_key(want))["latents"].shape[-2:]
            found = masks.grid(want.picture.path, want.picture.mask, want.crop, want.mirrored, (height, width))
            if not found.any():
                raise ImageError(f"{want.picture.name}: its mask shows nothing of what is trained on; mend the mask or remove the picture")
            _write(self._path(key), {"mask": found.contiguous()})
            yield Loading(phase="Reading masks", done=done, total=len(missing))

    def _fill(self, part: Part, phase: str, wants: Mapping[str, Want], prepare: Callable[[Want], Any], encode: "Encode") -> Iterator[Event]:
        import torch

        missing = {key: want for key, want in wants.items() if not _valid(self._path(key))}
        if not missing:
            return
        yield Loading(phase=phase, done=0, total=len(missing))
        done = 0
        with ahead(missing.items(), lambda item: prepare(item[1])) as coming, self._loaded(part) as (components, at_once):
            while group := list(islice(coming, at_once)):
                with torch.no_grad():
                    found = encode(components, [want for (_, want), _ in group], [made for _, made in group])
                for ((key, _), _), tensors in zip(group, found, strict=True):
                    _write(self._path(key), tensors)
                done += len(group)
                yield Loading(phase=phase, done=done, total=len(missing))

    @contextmanager
    def _loaded(self, part: Part) -> Iterator[tuple[Components, int]]:
        """The part, ready to encode, and how many things at once pay."""
        import torch

        from studio.families import away, lean, offload

        rings: list[offload.Ring] = []
        c = self.family.load(self.base, [part], self.dtype, torch.device("cpu") if part in self.apart else self.device)
        try:
            if part == "text" and part in self.apart:
                rings += [offload.stream(model, self.device) for model in c.parts.values() if isinstance(model, torch.nn.Module)]
                c.device = self.device
            if part == "vae" and lean.pays(c.device):
                lean.convolutions(c.parts["vae"], lean.Lean())
            yield c, away.AT_ONCE if rings else 1
        finally:
            for ring in rings:
                ring.close()
            c.parts.clear()
            release(self.device)

    def _encode_pictures(self, c: Components, wants: Sequence[Want], levels: "Sequence[Tensor]") -> "list[dict[str, Tensor]]":
        found = []
        for want, picture in zip(wants, levels, strict=True):
            latents = self.family.encode_images(c, picture[None])[0].float()
            found.append({"latents": _finite(latents, f"{want.picture.name}: its latents are not finite; try another VAE, or remove the picture")})
        return found

    def _encode_captions(self, c: Components, wants: Sequence[Want], captions: Sequence[str]) -> "list[dict[str, Tensor]]":
        whole, found = self.family.encode_captions(c, captions), []
        for number, want in enumerate(wants):
            message = f"{want.picture.name}: the text encoders gave numbers that are not finite for its caption; use precision bf16 or fp32"
            found.append({name: _finite(tensor[number], message) for name, tensor in whole.items()})
        return found

    def batch(self, wants: Sequence[Want]) -> Batch:
        """Stack cached pictures of one bucket, on the cache's device."""
        import torch

        latents = torch.stack([self._read(self.latent_key(want))["latents"] for want in wants])
        texts = [self._read(self.text_key(want.caption)) for want in wants]
        conditioning = {name: torch.stack([text[name] for text in texts]) for name in texts[0]}
        sizes = torch.tensor([want.crop.sizes(want.mirrored) for want in wants], dtype=torch.float32, device=self.device)
        counted = None
        if any(want.masked for want in wants):
            whole = torch.ones_like(latents[0, :1])
            counted = torch.stack([self._read(self.mask_key(want))["mask"] if want.masked else whole for want in wants])
        return Batch(latents, conditioning, sizes, tuple(want.picture.name for want in wants), counted)

    def latent_key(self, want: Want) -> str:
        crop = want.crop
        cut = [crop.resized, crop.left, crop.top, crop.bucket, want.mirrored]
        return _hash("latents", self._identity("vae"), want.picture.sha256, cut)

    def mask_key(self, want: Want) -> str:
        return _hash("mask", self.latent_key(want), want.picture.mask_sha256)

    def text_key(self, caption: str) -> str:
        if caption.strip():
            return _hash("text", self._identity("text"), str(self.dtype), caption)
        index = self.base.path / "model_index.json"  # says of some bases that nothing said is all zeros
        told = _file_hash(str(index), *_stamp(index)) if index.is_file() else ""
        return _hash("silence", self._identity("text"), str(self.dtype), told)

    def _identity(self, part: Part) -> str:
        if part not in self._identities:
            self._identities[part] = identity(self.base, self.family.facts.name, part)
        return self._identities[part]

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> "dict[str, Tensor]":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if key in self._resident:
            return self._resident[key]
        try:
            tensors = {name: tensor.to(self.device) for name, tensor in load_file(self._path(key)).items()}
        except (OSError, SafetensorError) as error:
            raise RunError(f"a cached encoding is gone or broken ({self._path(key).name}: {error}); start the run again to make it anew") from error
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._resident_bytes + size <= RESIDENT_BYTES:
            self._resident[key] = tensors
            self._resident_bytes += size
        return tensors


def pixels(want: Want) -> "Tensor":
    """(3, H, W) in [-1, 1]: the picture resized, cut and mirrored as planned."""
    import numpy as np
    import torch

    levels = torch.from_numpy(np.array(_cut(want), dtype=np.float32))
    return levels.permute(2, 0, 1) / 127.5 - 1


def _cut(want: Want) -> "Image":
    from PIL import Image, ImageOps

    from studio.data.images import decode

    crop = want.crop
    picture = decode(want.picture.path)
    if picture.size != crop.original:
        raise ImageError(f"{want.picture.name}: is {picture.width}x{picture.height} now, was {crop.original[0]}x{crop.original[1]}; read the image set again")
    if picture.size != crop.resized:
        picture = picture.resize(crop.resized, Image.Resampling.LANCZOS)
    picture = picture.crop((crop.left, crop.top, crop.left + crop.bucket[0], crop.top + crop.bucket[1]))
    return ImageOps.mirror(picture) if want.mirrored else picture


def identity(base: Base, family: str, part: Part) -> str:
    """Hash of the files and settings that decide what a part of a base gives: its VAE, its text encoders with their tokenizers, its denoiser."""
    lent = base.vae if part == "vae" and base.vae else base.encoders if base.kind == "file" and part != "denoiser" else None
    source = lent or base.path
    names = FOLDERS[part]
    files = [source]
    if source.is_dir():
        every = sorted(path for path in source.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors", ".txt", ".model"))
        files = [path for path in every if path.relative_to(source).parts[0].startswith(names)] or every
    if not files:
        raise BaseError(f"{source}: there are no files of a model in it; name a folder with {names[0]} in it")
    listing = [[str(path.relative_to(source)) if path != source else path.suffix, _file_hash(str(path), *_stamp(path))] for path in files]
    return _hash(family, part, listing, base.habits.get("text_tokens") if part == "text" else None)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1000)
def _file_hash(path: str, size: int, changed: int) -> str:
    """sha256 of a file; of its size and evenly spread blocks if it is large. A tuned model differs in every block.

    changed: time of change, which only keys the memory of this function.
    """
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            for block in range(N_BLOCKS):
                file.seek((size - BLOCK_BYTES) * block // (N_BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def _hash(*inputs: Any) -> str:
    return hashlib.sha256(json.dumps([SCHEMA, *inputs]).encode()).hexdigest()


def _finite(tensor: "Tensor", message: str) -> "Tensor":
    if not bool(tensor.isfinite().all()):
        raise ImageError(message)
    return tensor.detach().cpu().contiguous()


def _valid(path: Path) -> bool:
    """Whether a cached file is there and whole: its header's length and offsets agree with its size."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
            return path.stat().st_size == 8 + length + end
    except (OSError, ValueError, KeyError, OverflowError):
        return False


def _write(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """All or nothing, also through a power cut."""
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.part-{uuid.uuid4().hex}")
    try:
        with part.open("xb") as file:
            file.write(save(dict(tensors)))
            file.flush()
            os.fsync(file.fileno())
        reached("cache")
        part.replace(path)
    except OSError as error:
        raise RunError(f"{path.parent}: the cache cannot be written ({error.strerror}); free space or choose another data folder") from error
    finally:
        part.unlink(missing_ok=True)


def release(device: "torch.device") -> None:
    """Give the memory of dropped models back to the device."""
    import gc

    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
