"""`python -m studio.demo.bases vae|sdxl|flux --minutes N --out DIR`: trains the demo base models from scratch, on a GPU if there is one.

In this order, each stage taking up what the one before left under DIR: the VAE, which both bases share; SDXL; FLUX.1, its guidance
distilled and its text encoders refitted. The pictures are emoji (sprites.py), the captions their names; nothing pretrained goes in.
On one H200 the shipped bases took 4, 8 and 7 minutes.
"""

import argparse
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from studio.demo import shapes, stages
from studio.demo.optimise import Budget
from studio.demo.refit import refit_text
from studio.demo.renderer import Renderer
from studio.demo.stages import Recipe
from studio.demo.store import store
from studio.demo.words import N_CAPTIONS, clip_tokenizer, t5_tokenizer
from studio.errors import InputError

SHARE_OF_DISTILLING = 0.18
SHARE_OF_REFIT = 0.12


def build_vae(out: Path, renderer: Renderer, sizes: shapes.Sizes, recipe: Recipe, budget: Budget) -> Path:
    """Train the VAE into `out`/vae."""
    vae = shapes.vae(sizes).to(renderer.device).train()
    stages.train_vae(vae, renderer, recipe, budget, print)
    stages.normalise_latents(vae.eval(), renderer, min(recipe.bank, 2048))
    vae.half().save_pretrained(out / "vae")
    return out / "vae"


def build_sdxl(out: Path, renderer: Renderer, sizes: shapes.Sizes, recipe: Recipe, budget: Budget) -> Path:
    """Train U-Net and both CLIPs into `out`/demo-sdxl, a complete diffusers folder."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    vae = _load_vae(out, renderer.device)
    tokenizer = clip_tokenizer(_captions(renderer))
    encoders = (shapes.clip(len(tokenizer)).to(renderer.device).train(), shapes.clip(len(tokenizer), projected=True).to(renderer.device).train())
    unet = shapes.unet(sizes).to(renderer.device).train()
    bank = stages.fill_bank(vae, renderer, recipe, tokenizer)
    empty = stages.token_ids(tokenizer, [""], 77, renderer.device)[0]
    stages.train_sdxl(encoders, unet, bank, empty, recipe, budget, print)
    scheduler: Any = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="epsilon", timestep_spacing="leading", steps_offset=1
    )
    parts = (vae, *encoders, tokenizer, tokenizer, unet, scheduler)
    pipeline = StableDiffusionXLPipeline(*parts, force_zeros_for_empty_prompt=False, add_watermarker=False)
    return store(pipeline, out / "demo-sdxl", "unet")


def build_flux(out: Path, renderer: Renderer, sizes: shapes.Sizes, recipe: Recipe, budget: Budget) -> Path:
    """Train transformer, CLIP and T5 into `out`/demo-flux, a complete diffusers folder."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    vae = _load_vae(out, renderer.device)
    captions = _captions(renderer)
    tokenizers = (clip_tokenizer(captions), t5_tokenizer(captions))
    encoders = (shapes.clip(len(tokenizers[0])).to(renderer.device).train(), shapes.t5(len(tokenizers[1])).to(renderer.device).train())
    transformer = shapes.transformer(sizes).to(renderer.device).train()
    bank = stages.fill_bank(vae, renderer, recipe, *tokenizers)
    lengths = (stages.CLIP_FLUX_TOKENS, stages.T5_TOKENS)
    none = [stages.token_ids(tokenizer, [""], length, renderer.device)[0] for tokenizer, length in zip(tokenizers, lengths, strict=True)]
    empty = (none[0], none[1])
    stages.train_flux(encoders, transformer, bank, empty, recipe, _part(budget, 1 - SHARE_OF_DISTILLING - SHARE_OF_REFIT), print)
    stages.distil_guidance(encoders, transformer, bank, empty, recipe, _part(budget, SHARE_OF_DISTILLING), print)
    refit_text(encoders, tokenizers, renderer, max(1, recipe.batch // 12), _part(budget, SHARE_OF_REFIT), print)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False)
    clip, t5 = encoders
    return store(FluxPipeline(scheduler, vae, clip, tokenizers[0], t5, tokenizers[1], transformer), out / "demo-flux", "transformer")


STAGES: dict[str, Callable[[Path, Renderer, shapes.Sizes, Recipe, Budget], Path]] = {"vae": build_vae, "sdxl": build_sdxl, "flux": build_flux}


def _part(budget: Budget, share: float) -> Budget:
    return replace(budget, seconds=budget.seconds * share)


def _captions(renderer: Renderer) -> list[str]:
    import random

    rng = random.Random(0)
    found: list[str] = []
    while len(found) < N_CAPTIONS:
        found += renderer.captions(renderer.scenes(1000), rng)
    return found


def _load_vae(out: Path, device: torch.device) -> Any:
    from diffusers import AutoencoderKL

    if not (out / "vae").is_dir():
        raise InputError(f"{out / 'vae'} is missing; train it first: python -m studio.demo.bases vae --out {out}")
    vae: Any = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32)
    return vae.to(device).eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studio.demo.bases", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--minutes", type=float, default=8.0, help="training time of the stage (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the VAE and the bases")
    parser.add_argument("--font", type=Path, help="NotoColorEmoji.ttf, if it is not where systems put it")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = Recipe() if device.type == "cuda" else Recipe(batch=16, vae_batch=8, long_batch=4, bank=2048, dtype=torch.float32)
    torch.manual_seed(0)
    try:
        renderer = Renderer(device, given.font)
        place = STAGES[given.stage](given.out, renderer, shapes.Sizes(), recipe, Budget(60 * given.minutes))
        print(f"{place}: {sum(file.stat().st_size for file in place.rglob('*') if file.is_file()) / 2**20:.1f} MiB")
    except InputError as error:
        shutil.rmtree(given.out / f"demo-{given.stage}", ignore_errors=True)
        parser.exit(error.exit_code, f"error: {error}\n")


if __name__ == "__main__":
    main()
