"""A batch and its draws, made ready for the device."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from studio.config import TrainConfig
from studio.data.cache import Cache, Want
from studio.training.draws import Draw
from studio.training.noise import extra_noise, target_noise
from studio.training.step import Micro


def drawn(store: Cache, draws: Sequence[Draw], wants: Sequence[Want], config: TrainConfig) -> Micro:
    """The micro-batch of these pictures. What no setting asks for is None, so that plain training stays plain."""
    batch, device = store.batch(wants), store.device
    outside = 1 - batch.masks if config.masked_prior_weight and batch.masks is not None else None
    if batch.masks is not None:
        batch = replace(batch, masks=config.unmasked_weight + (1 - config.unmasked_weight) * batch.masks)
    shape = tuple(batch.latents.shape[1:])
    rivals = [rival for want in wants if (rival := want.against)]
    weight = torch.tensor([want.weight for want in wants], dtype=torch.float32)
    prior = torch.tensor([want.prior for want in wants])

    def there(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return Micro(
        batch,
        there(torch.stack([target_noise(draw, shape, config) for draw in draws])),
        there(torch.tensor([draw.level for draw in draws], dtype=torch.float32)),
        there(torch.tensor([draw.key for draw in draws])) if config.dropout else None,
        there(torch.stack([extra for draw in draws if (extra := extra_noise(draw, shape, config)) is not None])) if config.input_perturbation else None,
        there(weight) if config.prior_weight != 1.0 else None,  # the same in every batch, so that a recorded step fits them all
        there(prior) if any(want.prior for want in wants) else None,
        store.batch(rivals).latents if rivals else None,
        tuple(want.caption for want in wants) if config.reads_live else (),
        outside,
    )
