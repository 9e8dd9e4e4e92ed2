"""Which settings one pass of the denoiser can serve together: the same for all its pictures, while prompts, seeds and stacks are each picture's own."""

import json

from studio.config.generating import GenerateConfig

OWN = frozenset({"prompt", "negative_prompt", "loras", "seed", "count", "batch", "variation_seed", "variation_strength", "format", "quality", "live_preview"})


def shared_pass(config: GenerateConfig) -> str:
    """A word that is equal for settings whose pictures can be drawn at once; empty where a picture is drawn by itself.

    Only pictures from noise in one denoising go together, and only if `batch` allows it, since a batch differs in its last digits
    from a picture drawn alone. A job with more pictures than one batch holds keeps to itself.
    """
    alone = config.grid or config.init_image or config.hires_scale or config.upscale
    if alone or config.batch < 2 or config.count > config.batch:
        return ""
    return json.dumps(config.model_dump(mode="json", exclude=set(OWN)), sort_keys=True)
