"""Which way a run takes its steps: settled before the first one, with the reason."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch

from studio.config import TrainConfig
from studio.lora import fused
from studio.lora.attach import NAME, Attached

COMPILED_PICTURES = 600  # pictures at 1024 px a run must see before compiling, some 10 s a shape, is made up for
MOST_SHAPES = 3  # shapes of batches that are compiled for; each is compiled anew
LARGE_AREA = 1024 * 1024


@dataclass(frozen=True)
class Speed:
    """eager: one operation after another. graph: the whole step recorded once and replayed. compile: that, with compiled blocks."""

    mode: Literal["eager", "graph", "compile"]
    why: str

    def facts(self) -> dict[str, Any]:
        return {"speed": self.mode, "speed_reason": self.why}


def choose(attached: Attached, config: TrainConfig, *, steps: int, shapes: int) -> Speed:
    """The way for a run of so many steps over batches of so many shapes."""
    if config.speed == "eager":
        return Speed("eager", "as the settings say")
    found = _obstacle(attached, config)
    if found:
        return Speed("eager", found)
    if config.speed == "graph":
        return Speed("graph", "as the settings say")
    if find_spec("triton") is None:
        return Speed("graph", "nothing can be compiled here: the package triton is missing")
    if config.speed == "compile":
        return Speed("compile", "as the settings say")
    if config.block_offload:
        return Speed("graph", "blocks that come from main memory wait for copies more than compiling could gain")
    pictures = steps * (config.batch_size or 1) * config.gradient_accumulation * (config.resolution or 0) ** 2 / LARGE_AREA
    if shapes > MOST_SHAPES:
        return Speed("graph", f"batches of {shapes} shapes would each be compiled")
    if pictures < COMPILED_PICTURES:
        return Speed("graph", "the run is too short to make up for compiling")
    return Speed("compile", "the run is long enough to make up for compiling")


def _obstacle(attached: Attached, config: TrainConfig) -> str:
    """Why the steps cannot be recorded; empty if they can."""
    c = attached.components
    if c.device.type != "cuda":
        return f"recording a step needs an NVIDIA GPU, this is {c.device.type}"
    if c.dtype == torch.float16:
        return "fp16 looks at its loss scale after every step"
    if config.processes > 1:
        return "several processes add up their gradients between the passes"
    if config.optimizer != "adamw":
        return f"optimizer {config.optimizer} cannot be recorded"
    if config.prior_prediction or config.masked_prior_weight or config.preference_beta is not None:
        return "the base is asked without its adapter within a step"
    if any(place.part != c.facts.denoiser for place in attached.places):
        return "text encoders are trained too"
    if attached.words:
        return "new words are trained, so captions are read anew in every step"
    if not attached.plain:
        return f"network {config.network} with these settings cannot be regrouped"
    return fused.obstacle(c.denoiser, NAME)
