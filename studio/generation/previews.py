"""What a picture looks like before it is done: latents turned to colours by one small matrix, with no VAE at work."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from studio import families
from studio.families.base import Components
from studio.metadata import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 256  # pixels of a picture the matrix is fitted on
SAMPLES = 6
KEPT = 3  # preview files at least
KEPT_SECONDS = 10.0  # and all that are no older, for a page that has heard of one may ask for it a little late
QUALITY = 80
_WARM = "colours"


class Previews:
    """Writes a preview into `folder`/previews now and then, and forgets those that no page asks for any more."""

    def __init__(self, c: Components, folder: Path, seconds: float) -> None:
        self._c = c
        self._folder = folder
        self._seconds = seconds
        self._last = time.monotonic()
        self._count = 0
        self._written: list[tuple[float, Path]] = []  # when, and those that are still there

    def show(self, estimate: "Callable[[], Tensor]") -> str | None:
        """Path of a new preview, relative to the folder; None if it is too soon for one."""
        now = time.monotonic()
        if not self._seconds or now - self._last < self._seconds:
            return None
        path = self._folder / "previews" / f"{self._count:05}.webp"
        write_atomic(path, [preview(self._c, estimate())])
        self._last = time.monotonic()
        self._count += 1
        self._written.append((self._last, path))
        while len(self._written) > KEPT and self._last - self._written[0][0] > KEPT_SECONDS:
            self._written.pop(0)[1].unlink(missing_ok=True)
        return path.relative_to(self._folder).as_posix()


def preview(c: Components, latents: "Tensor") -> bytes:
    """The first of these latents (B, C, h, w) as a small WebP, one pixel a latent."""
    from PIL import Image

    levels = ((colours(c, latents[:1])[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    content = io.BytesIO()
    Image.fromarray(levels).save(content, "WEBP", quality=QUALITY)
    return content.getvalue()


def colours(c: Components, latents: "Tensor") -> "Tensor":
    """(B, C, h, w) -> (B, 3, h, w) in about [-1, 1]: the mean colour of the pixels under each latent, as near as a linear map comes."""
    import torch

    if _WARM not in c.warm:
        c.warm[_WARM] = _fitted(c)
    matrix, shift = c.warm[_WARM]
    with torch.no_grad():
        return torch.einsum("oc,bchw->bohw", matrix.to(latents.device), latents.float()) + shift.to(latents.device).view(1, 3, 1, 1)


def _fitted(c: Components) -> "tuple[Tensor, Tensor]":
    """(3, C) and (3,), by least squares over pictures of random colour fields, coarse to fine; every VAE gets its own."""
    import torch

    draw = torch.Generator().manual_seed(0)
    fields = []
    for i in range(SAMPLES):
        coarse = torch.rand(1, 3, 3 + 4 * i, 3 + 4 * i, generator=draw) * 2.4 - 1.2
        fields.append(torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=False).clamp(-1, 1))
    images = torch.cat(fields)
    latents = torch.cat([families.get(c.facts.name).encode_images(c, image[None]).float().cpu() for image in images])
    targets = torch.nn.functional.adaptive_avg_pool2d(images, (latents.shape[-2], latents.shape[-1]))
    known = torch.cat([latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]), torch.ones(targets[:, 0].numel(), 1)], dim=1)
    found = torch.linalg.lstsq(known.double(), targets.permute(0, 2, 3, 1).reshape(-1, 3).double()).solution.float()
    return found[:-1].T.contiguous(), found[-1]
