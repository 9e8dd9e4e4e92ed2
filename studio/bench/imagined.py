"""Bases of real architectures with made-up weights that were never on a disk: whole runs on them need no download and no time to write."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studio.bench.subjects import filled, skeleton
from studio.families import FAMILIES, get, parts, sources
from studio.families.base import Base, Components, Family, Part
from studio.families.parts import CONFIGS, freeze, read_json


class Imagined:
    """A family that makes its parts up instead of reading them; all else is the family's own."""

    def __init__(self, family: Family, demo: Path) -> None:
        self.facts, self.demo = family.facts, demo
        self._family = family
        self._waiting: dict[torch.dtype, dict[str, torch.Tensor]] = {}  # denoisers in main memory, which take long to fill

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def load(self, base: Base, wanted: Sequence[Part], dtype: torch.dtype, device: torch.device) -> Components:
        import diffusers
        import transformers

        facts, index = self.facts, read_json(self.demo / "model_index.json")
        schedule = read_json(base.path / "scheduler" / "scheduler_config.json")
        found: dict[str, Any] = {"scheduler": getattr(diffusers, schedule["_class_name"]).from_config(schedule), "force_zeros_for_empty_prompt": True}
        if "denoiser" in wanted:
            found[facts.denoiser] = self._denoiser(base, dtype, device)
        if "vae" in wanted:
            with torch.device("meta"):
                vae = diffusers.AutoencoderKL.from_config(read_json(base.path / "vae" / "config.json"))
            found["vae"] = parts.accept_half_precision(filled(vae, torch.float32, device))  # type: ignore[arg-type]
        if "text" in wanted or "clip" in wanted:
            for name in [name for name in index if name.startswith("text_encoder")]:
                kind = getattr(transformers, index[name][1])
                with torch.device("meta"):
                    model = kind(kind.config_class.from_dict(read_json(base.path / name / "config.json")))
                found[name] = filled(model, dtype, device)
            for name in [name for name in index if name.startswith("tokenizer")]:
                found[name] = parts.read_tokenizer(getattr(transformers, index[name][1]), self.demo, name)
        return Components(base, facts, found, dtype, device, facts.objective)

    def _denoiser(self, base: Base, dtype: torch.dtype, device: torch.device) -> nn.Module:
        bare = skeleton(self._family, base.path)
        if device.type != "cpu":
            return filled(bare, dtype, device)
        if dtype not in self._waiting:
            self._waiting[dtype] = dict(filled(skeleton(self._family, base.path), dtype, device).state_dict())
        bare.load_state_dict(self._waiting[dtype], assign=True)
        return freeze(bare, device)


@contextmanager
def base(family: str, configs: Path | None = None) -> Iterator[Base]:
    """Within, a base of that family that any run can be given; full-size, or as large as the configs in that folder say."""
    kind, name = get(family), f"imagined-{family}"
    FAMILIES[name] = Imagined(kind, sources.BUILTIN / kind.facts.default_base)  # type: ignore[assignment]
    try:
        yield Base(name, name, "folder", configs or CONFIGS / family, title=f"{kind.facts.title}, made up")
    finally:
        del FAMILIES[name]
