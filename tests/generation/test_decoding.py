"""Large pictures are decoded in tiles when they do not fit, and only then."""

import pytest
import torch

from studio import families
from studio.families.base import Components
from studio.generation import decoding


def test_a_picture_that_does_not_fit_is_decoded_in_tiles(c: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.randn(1, c.parts["vae"].config.latent_channels, 40, 40, generator=torch.Generator().manual_seed(1))
    side = 40 * 2 ** (len(c.parts["vae"].config.block_out_channels) - 1)
    assert decoding.fit(c, [(64, 64), (side, side)]) == ""
    whole = families.get(c.facts.name).decode_latents(c, latents)
    monkeypatch.setattr(decoding, "_free", lambda _: 300 * 300 * decoding.PIXEL_BYTES)
    assert decoding.fit(c, [(side, side)]).startswith("decoded in tiles of 256 pixels")
    tiled = families.get(c.facts.name).decode_latents(c, latents)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole) and (tiled - whole).abs().mean() < 0.1
    assert decoding.fit(c, [(256, 256)]) == "" and torch.equal(families.get(c.facts.name).decode_latents(c, latents), whole)
