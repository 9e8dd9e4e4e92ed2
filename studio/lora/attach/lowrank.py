"""LoRA, LoCon and DoRA, with the scaling of rsLoRA if asked for."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from studio.config.training.network import Network
from studio.lora.adapter import Decomposed, Layer, LowRank
from studio.lora.attach.choice import Place
from studio.lora.attach.weights import NAME, other_kind, other_size, ranks, taken
from studio.lora.formats import names

if TYPE_CHECKING:
    from torch import nn


class LoRA:
    """up @ down; a convolution keeps its kernel in down."""

    def config(self, network: Network, places: Sequence[Place], pattern: str) -> Any:
        return _config(network, places, pattern, dora=False)

    def settle(self, module: Any, place: Place) -> None:
        """PEFT's own initialisation stands: down random, up zero."""

    def collect(self, module: Any) -> LowRank:
        rank, scaling = module.r[NAME], float(module.scaling[NAME])
        # Every loader computes alpha / rank, so rank-stabilised scaling is written as the alpha that gives it.
        alpha = float(module.lora_alpha[NAME]) if scaling == module.lora_alpha[NAME] / rank else scaling * rank
        return LowRank(taken(module.lora_A[NAME].weight), taken(module.lora_B[NAME].weight), alpha)

    def fill(self, module: Any, layer: Layer | None, path: str) -> None:
        down, up = module.lora_A[NAME].weight, module.lora_B[NAME].weight
        if layer is None:
            up.zero_()
            return
        if not isinstance(layer, LowRank):
            raise other_kind(path, layer, "lora")
        if layer.rank > down.shape[0] or layer.down.shape[1:] != down.shape[1:] or layer.up.shape[0] != up.shape[0]:
            raise other_size(path, layer, down.shape[0])
        own, here = layer.alpha / layer.rank, float(module.scaling[NAME])
        down[: layer.rank] = layer.down.to(down)
        up.zero_()
        # alpha / sqrt(rank) times rank and divided by it again may be off by a rounding, which is no reason to touch a bit
        up[:, : layer.rank] = layer.up.to(up) * (1.0 if math.isclose(own, here, rel_tol=1e-12) else own / here)


class DoRA:
    """A LoRA whose sum with the base gets learned lengths of its rows. Source: arXiv 2402.09353."""

    def config(self, network: Network, places: Sequence[Place], pattern: str) -> Any:
        return _config(network, places, pattern, dora=True)

    def settle(self, module: Any, place: Place) -> None:
        """PEFT's own initialisation stands: the lengths are those of the base's rows."""

    def collect(self, module: Any) -> Decomposed:
        return Decomposed(LoRA().collect(module), taken(module.lora_magnitude_vector[NAME].weight).flatten())

    def fill(self, module: Any, layer: Layer | None, path: str) -> None:
        """A plain LoRA is taken too: its lengths are those that its sum with the base has."""
        inner = layer.layer if isinstance(layer, Decomposed) else layer
        if isinstance(layer, Decomposed) and (layer.axis != "output" or not isinstance(inner, LowRank)):
            raise other_kind(path, layer, "dora by rows")
        LoRA().fill(module, inner, path)
        lengths = module.lora_magnitude_vector[NAME].weight
        if isinstance(layer, Decomposed):
            lengths.copy_(layer.magnitude.reshape(lengths.shape).to(lengths))
        else:
            lengths.copy_(_lengths(module).reshape(lengths.shape).to(lengths))


def untrained_partners(modules: "Mapping[str, nn.Module]", found: Mapping[str, Layer]) -> dict[str, Layer]:
    """DoRA layers without effect for modules that files keep as one with trained ones: a fused layer needs the lengths of all its rows."""
    import torch

    made: dict[str, Layer] = {}
    for path in found:
        for other in names.partners(path):
            if other not in found and other not in made:
                weight = modules[other].weight.detach().float().cpu()  # type: ignore[union-attr]
                lengths = torch.linalg.vector_norm(weight.flatten(1), dim=1)
                made[other] = Decomposed(LowRank(torch.zeros(1, weight.shape[1]), torch.zeros(weight.shape[0], 1), 1.0), lengths)
    return made


def is_untrained(layer: Layer) -> bool:
    """Whether it is one of those."""
    return isinstance(layer, Decomposed) and isinstance(layer.layer, LowRank) and not bool(layer.layer.up.any())


def _lengths(module: Any) -> Any:
    import torch
    from peft.utils.integrations import dequantize_module_weight

    own = dequantize_module_weight(module.get_base_layer()).float()
    return torch.linalg.vector_norm((own + LoRA().collect(module).delta().to(own)).flatten(1), dim=1)


def _config(network: Network, places: Sequence[Place], pattern: str, *, dora: bool) -> Any:
    from peft import LoraConfig

    rank, alpha = network.rank or 0, network.alpha or network.rank or 0
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=pattern,
        lora_dropout=network.dropout,
        bias="none",
        use_rslora=network.rank_stabilized,
        use_dora=dora,
        init_lora_weights="gaussian" if network.init == "gaussian" else True,
        **ranks(places, rank, alpha),
    )
