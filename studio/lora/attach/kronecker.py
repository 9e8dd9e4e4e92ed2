"""LoKr: the Kronecker product of a small matrix and a low-rank one; small files of high rank."""

from collections.abc import Sequence
from typing import Any

from studio.config.training.network import Network
from studio.lora.adapter import Kronecker, Layer
from studio.lora.attach.choice import Place
from studio.lora.attach.weights import NAME, other_kind, other_size, ranks, taken


class LoKr:
    """w1 whole and zero at first, w2 a pair of factors where the rank is less than half its side. Source: arXiv 2309.14859."""

    def config(self, network: Network, places: Sequence[Place], pattern: str) -> Any:
        from peft import LoKrConfig

        rank, alpha = network.rank or 0, network.alpha or network.rank or 0
        return LoKrConfig(r=rank, alpha=alpha, target_modules=pattern, **ranks(places, rank, alpha))  # type: ignore[arg-type]

    def settle(self, module: Any, place: Place) -> None:
        """Whole factors have no rank to divide by: every loader takes them at scale 1, and so do we."""
        module.module_dropout[NAME] = -1.0
        if len(_second(module)) == 1:
            module.scaling[NAME] = 1.0

    def collect(self, module: Any) -> Kronecker:
        second = tuple(taken(tensor) for tensor in _second(module))
        alpha = float(module.alpha[NAME]) if len(second) == 2 else 1.0
        return Kronecker((taken(module.lokr_w1[NAME]),), second, alpha, tuple(module.get_base_layer().weight.shape[2:]))

    def fill(self, module: Any, layer: Layer | None, path: str) -> None:
        first, second = module.lokr_w1[NAME], _second(module)
        if layer is None:
            first.zero_()
            return
        if not isinstance(layer, Kronecker) or layer.t2 is not None or layer.rows or len(layer.w1) == 2:
            raise other_kind(path, layer, "lokr of a whole and a factored part")
        shapes = [tuple(tensor.shape) for tensor in (*layer.w1, *layer.w2)]
        if shapes != [tuple(tensor.shape) for tensor in (first, *second)]:
            raise other_size(path, layer, module.r[NAME])
        own = layer.alpha / layer.factor_rank if layer.factor_rank else 1.0
        share = own / float(module.scaling[NAME])
        first.copy_(layer.w1[0].to(first) * share if share != 1.0 else layer.w1[0].to(first))
        for tensor, given in zip(second, layer.w2, strict=True):
            tensor.copy_(given.to(tensor))


def _second(module: Any) -> list[Any]:
    if NAME in module.lokr_w2:
        return [module.lokr_w2[NAME]]
    return [module.lokr_w2_a[NAME], module.lokr_w2_b[NAME]]
