"""LoHa: the product, element by element, of two low-rank matrices; its rank may reach the square of the factors'."""

from collections.abc import Sequence
from typing import Any

from studio.config.training.network import Network
from studio.lora.adapter import Hadamard, Layer
from studio.lora.attach.choice import Place
from studio.lora.attach.weights import NAME, other_kind, other_size, ranks, taken

PARTS = ("w1_a", "w1_b", "w2_a", "w2_b")


class LoHa:
    """Source: arXiv 2108.06098; w2_b starts at zero."""

    def config(self, network: Network, places: Sequence[Place], pattern: str) -> Any:
        from peft import LoHaConfig

        rank, alpha = network.rank or 0, network.alpha or network.rank or 0
        return LoHaConfig(r=rank, alpha=alpha, target_modules=pattern, **ranks(places, rank, alpha))  # type: ignore[arg-type]

    def settle(self, module: Any, place: Place) -> None:
        """PEFT draws a number in every forward pass to drop whole modules with this chance; below 0 it never does."""
        module.module_dropout[NAME] = -1.0

    def collect(self, module: Any) -> Hadamard:
        kernel = tuple(module.get_base_layer().weight.shape[2:])
        return Hadamard(*(taken(tensor) for tensor in _tensors(module)), alpha=float(module.alpha[NAME]), kernel=kernel)

    def fill(self, module: Any, layer: Layer | None, path: str) -> None:
        """A smaller rank leaves the other columns of w1_a and rows of w2_b at zero: no effect yet, but free to learn."""
        own = _tensors(module)
        w1_a, w1_b, w2_a, w2_b = own
        if layer is None:
            w2_b.zero_()
            return
        if not isinstance(layer, Hadamard) or layer.t1 is not None:
            raise other_kind(path, layer, "loha")
        rank = w1_b.shape[0]
        if layer.rank > rank or layer.shape != tuple(module.get_base_layer().weight.shape):
            raise other_size(path, layer, rank)
        share = (layer.alpha / layer.rank) / float(module.scaling[NAME])
        w1_a.zero_()
        w2_b.zero_()
        w1_a[:, : layer.rank] = layer.w1_a.to(w1_a) if share == 1.0 else layer.w1_a.to(w1_a) * share
        w2_a[:, : layer.rank] = layer.w2_a.to(w2_a)
        w1_b[: layer.rank], w2_b[: layer.rank] = layer.w1_b.to(w1_b), layer.w2_b.to(w2_b)


def _tensors(module: Any) -> list[Any]:
    return [getattr(module, f"hada_{name}")[NAME] for name in PARTS]
