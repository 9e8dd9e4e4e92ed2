"""Encoded prompts of a loaded base, kept so that the next picture of the same words starts at once."""

from collections import OrderedDict

from studio import families
from studio.config import GenerateConfig
from studio.families import words
from studio.families.base import Components, Conditioning
from studio.generation.denoise import Guide
from studio.generation.weighting import passages

KEPT = 32  # prompts; 4 MB each at the size of T5 XXL
_WARM = "prompts"


def encode(c: Components, prompt: str, text_stack: str, tokens: int = 0) -> Conditioning:
    """Conditioning of one prompt of at least so many tokens. text_stack: fingerprint of what is baked into the text encoders."""
    if words.learning(c) or any(hasattr(c.parts.get(part), "peft_config") for part in c.facts.text_encoders):
        return families.get(c.facts.name).encode_prompt(c, passages(prompt), tokens)  # encoders in training give something else after every step
    kept: OrderedDict[tuple[str, str, int], Conditioning] = c.warm.setdefault(_WARM, OrderedDict())
    key = (prompt, text_stack, tokens)
    if key not in kept:
        keep(c, prompt, text_stack, families.get(c.facts.name).encode_prompt(c, passages(prompt), tokens), tokens)
    kept.move_to_end(key)
    return kept[key]


def keep(c: Components, prompt: str, text_stack: str, spoken: Conditioning, tokens: int = 0) -> None:
    """Remember what a prompt was encoded to; the longest unused is let go."""
    kept: OrderedDict[tuple[str, str, int], Conditioning] = c.warm.setdefault(_WARM, OrderedDict())
    kept[prompt, text_stack, tokens] = spoken
    while len(kept) > KEPT:
        kept.popitem(last=False)


def guide(c: Components, prompt: str, config: GenerateConfig, text_stack: str) -> Guide:
    """What the denoiser is pulled by: the prompt (without tags), and the negative prompt where the base or true_cfg draws away from it."""
    import torch

    wanted = dict(encode(c, prompt, text_stack))
    scale = config.guidance or 0.0 if c.facts.negative_prompts else config.true_cfg or 1.0
    told = None if c.facts.negative_prompts else config.guidance
    if scale <= 1:
        return Guide(wanted, told=told)
    if not config.negative_prompt and c.parts.get("force_zeros_for_empty_prompt", False):
        unwanted = {key: torch.zeros_like(value) for key, value in wanted.items()}
    else:
        unwanted = encode(c, config.negative_prompt, text_stack)
        length, other = wanted["prompt_embeds"].shape[1], unwanted["prompt_embeds"].shape[1]
        if other < length:
            unwanted = encode(c, config.negative_prompt, text_stack, length)
        elif length < other:
            wanted = encode(c, prompt, text_stack, other)
    return Guide(wanted, unwanted, scale, config.guidance_rescale, told)
