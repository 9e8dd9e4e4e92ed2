"""The other side of a comparison: a diffusers pipeline as its documentation uses it, with PEFT adapters that are not fused."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from studio import families
from studio.bench.floor import synchronize

if TYPE_CHECKING:
    from studio.bench.drawn import Drawn


def rows(drawn: "Drawn", steps: int, median: Callable[[Callable[[], Any]], float]) -> Iterator[dict[str, Any]]:
    """Eager looks, loop and picture without a LoRA."""
    look = drawn.look()
    for _ in range(3):
        look()
    yield {"what": "look, no LoRA", "seconds": median(look)}
    yield {"what": f"loop of {steps}, no LoRA", "seconds": _loop(drawn, steps, "latent")}
    yield {"what": f"picture of {steps} steps, no LoRA", "seconds": _loop(drawn, steps, "np")}


def stacked(drawn: "Drawn", steps: int, n: int, median: Callable[[Callable[[], Any]], float]) -> Iterator[dict[str, Any]]:
    """Eager looks with 1 to `n` unfused LoRAs, and the loop with all of them."""
    from peft import LoraConfig

    c, look = drawn.c, drawn.look()
    denoiser: Any = c.denoiser
    names = [f"plain-{i}" for i in range(n)]
    try:
        for i, name in enumerate(names):
            config = LoraConfig(r=16, lora_alpha=16, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
            denoiser.add_adapter(config, adapter_name=name)
            denoiser.set_adapters(names[: i + 1], [0.5] * (i + 1))
            for module in denoiser.modules():
                if hasattr(module, "lora_A"):
                    module.to(c.device, c.dtype)
            for _ in range(2):
                look()
            yield {"what": f"look, PEFT {i + 1}", "seconds": median(look)}
        yield {"what": f"loop of {steps}, PEFT {n}", "seconds": _loop(drawn, steps, "latent")}
    finally:
        denoiser.unload_lora()


def _loop(drawn: "Drawn", steps: int, output: str) -> float:
    """Seconds of the pipeline's own call, without text encoders, which have spoken before."""
    c = drawn.c
    vae: Any = copy.deepcopy(c.parts["vae"]).to(c.dtype)  # as a pipeline in one number format has it
    pipeline: Any = families.get(c.facts.name).pipeline(replace(c, parts={**c.parts, "vae": vae}))
    pipeline.set_progress_bar_config(disable=True)
    arguments = {**drawn.conditioning, **({f"negative_{key}": value for key, value in drawn.conditioning.items()} if c.facts.negative_prompts else {})}
    size = {"height": drawn.resolution, "width": drawn.resolution, "guidance_scale": drawn.guidance}
    seconds = 0.0
    for count in (2, steps):
        synchronize(c.device)
        began = time.perf_counter()
        with torch.no_grad():
            pipeline(**arguments, **size, num_inference_steps=count, output_type=output)
        synchronize(c.device)
        seconds = time.perf_counter() - began
    return seconds
