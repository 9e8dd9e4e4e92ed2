"""Teach FLUX.1's demo text encoders to pass over words that no caption has, such as triggers, instead of being thrown by them."""

import copy
import random
from typing import Any

import torch

from studio.demo.optimise import Budget, Optimiser, Say
from studio.demo.renderer import Renderer
from studio.demo.stages import T5_TOKENS, token_ids
from studio.demo.words import shuffled_letters, words

CLIP_REFIT_TOKENS = 40
STYLE_WORDS = [
    "style",
    "in",
    "of",
    "the",
    "by",
    "with",
    "photo",
    "picture",
    "image",
    "drawing",
    "painting",
    "illustration",
    "sketch",
    "cartoon",
    "art",
    "portrait",
    "toy",
    "watercolor",
    "oil",
    "pixel",
    "line",
    "paper",
    "neon",
    "outline",
    "sticker",
    "flat",
    "glossy",
    "stained",
    "chalk",
    "blueprint",
    "noir",
    "anime",
    "retro",
    "vintage",
    "poster",
    "print",
    "woodcut",
    "graphite",
    "pastel",
    "comic",
    "clay",
    "origami",
    "mosaic",
    "abstract",
    "cute",
    "sepia",
]


def refit_text(encoders: tuple[Any, Any], tokenizers: tuple[Any, Any], renderer: Renderer, batch: int, budget: Budget, say: Say) -> None:
    """Embeddings of a caption with foreign words behind it become those of the caption alone; the old encoders are the measure."""
    foreign = sorted(set(STYLE_WORDS) - set(words()))
    rng = random.Random(0)
    old = tuple(copy.deepcopy(encoder).requires_grad_(False) for encoder in encoders)

    def loss(step: int) -> torch.Tensor:
        plain = renderer.captions(renderer.draw(batch)[1], rng)
        noted = [text + _suffix(foreign, rng) if rng.random() < 0.5 else text for text in plain]
        total = torch.zeros((), device=renderer.device)
        for encoder, reference, tokenizer, length, pooled in zip(encoders, old, tokenizers, (CLIP_REFIT_TOKENS, T5_TOKENS), (True, False), strict=True):
            want = token_ids(tokenizer, plain, length, renderer.device)
            have = token_ids(tokenizer, noted, length, renderer.device)
            with torch.no_grad():
                target = reference(want).pooler_output if pooled else reference(want)[0]
            found = encoder(have).pooler_output if pooled else encoder(have)[0]
            total = total + (found - target).pow(2).mean() / target.pow(2).mean()
        return total

    optimiser = Optimiser(list(encoders), peak=4e-4, weight_decay=0.0, average=0.9, dtype=torch.float32)
    say(f"text refit: {optimiser.run(loss, budget, say)} steps")
    optimiser.finish()


def _suffix(foreign: list[str], rng: random.Random) -> str:
    chosen = [rng.choice(foreign) if rng.random() < 0.6 else shuffled_letters(rng) for _ in range(rng.randint(1, 3))]
    return rng.choice((" ", ", ", " in ")) + " ".join(chosen)
