"""LoRA layers made cheap for training: one frozen product with its low-rank part, and the layers that share an input as one.

PEFT runs three small modules beside every layer and keeps their weights as thousands of small tensors. Here the query, key and value of
an attention become one product, and all layers of one shape lie in one bank: gathering gradients, rounding and clipping take a few kernels
for the whole adapter. PEFT's own parameters stay where they were, as exact fp32 views into the banks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0, FusedAttnProcessor2_0
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

RELEASED = 8  # groups after whose joining the memory of their single layers is given back
# attribute of an attention -> its layers that see the same input; diffusers asks these for the products once they are there
SHARED = {"to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v"), "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}


@torch.library.custom_op("lora_studio::product", mutates_args=())
def product(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(..., out) = x W' + b + scale (x down') up', and (tokens, r) the inner product that the backward pass needs.

    x: (..., in). weight: (out, in), frozen. down: (r, in). up: (out, r).
    """
    flat = x.reshape(-1, x.shape[-1])
    inner = flat @ down.t()
    out = torch.mm(flat, weight.t()) if bias is None else torch.addmm(bias, flat, weight.t())
    out.addmm_(inner, up.t(), alpha=scale)
    return out.view(*x.shape[:-1], weight.shape[0]), inner


@product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    tokens = x.numel() // x.shape[-1]
    return x.new_empty((*x.shape[:-1], weight.shape[0])), x.new_empty((tokens, down.shape[0]))


@torch.library.custom_op("lora_studio::product_factors", mutates_args=())
def product_factors(grad: Tensor, x: Tensor, inner: Tensor, up: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `product` on its inner value, down and up."""
    flat = grad.reshape(-1, grad.shape[-1])
    on_inner = (flat @ up).mul_(scale) if scale != 1.0 else flat @ up
    on_down = on_inner.t() @ x.reshape(-1, x.shape[-1])
    on_up = flat.t() @ inner
    return on_inner, on_down, on_up.mul_(scale) if scale != 1.0 else on_up


@product_factors.register_fake
def _(grad: Tensor, x: Tensor, inner: Tensor, up: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(inner), x.new_empty((inner.shape[1], x.shape[-1])), torch.empty_like(up)


@torch.library.custom_op("lora_studio::product_input", mutates_args=())
def product_input(grad: Tensor, on_inner: Tensor, weight: Tensor, down: Tensor) -> Tensor:
    """Gradient of `product` on x."""
    found = grad.reshape(-1, grad.shape[-1]) @ weight
    found.addmm_(on_inner, down)
    return found.view(*grad.shape[:-1], weight.shape[1])


@product_input.register_fake
def _(grad: Tensor, on_inner: Tensor, weight: Tensor, down: Tensor) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], weight.shape[1]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, down, up, ctx.scale = inputs
    ctx.save_for_backward(x, output[1], weight, down, up)
    ctx.mark_non_differentiable(output[1])


def _back(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    x, inner, weight, down, up = ctx.saved_tensors
    on_inner, on_down, on_up = product_factors(grad, x, inner, up, ctx.scale)
    on_x = product_input(grad, on_inner, weight, down) if ctx.needs_input_grad[0] else None
    return on_x, None, None, on_down, on_up, None


product.register_autograd(_back, setup_context=_keep)


@dataclass(frozen=True, eq=False)
class Group:
    """LoRA layers of one input: PEFT's modules in the order of their outputs."""

    layers: tuple[Any, ...]
    name: str  # adapter name within PEFT

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """layers, in, out of each, rank of each"""
        up = self.layers[0].lora_B[self.name].weight
        return len(self.layers), self.layers[0].in_features, up.shape[0], up.shape[1]

    @property
    def scale(self) -> float:
        return float(self.layers[0].scaling[self.name])


class Bank:
    """All groups of one shape: G groups of n layers, in features, out features each, rank r.

    exact: fp32 (G, n, r, in) and (G, n, out, r), which PEFT's parameters are views of. live: the same in the base's number format
    as one product reads it, (G, n r, in) and block-diagonal (G, n out, n r).
    """

    def __init__(self, groups: Sequence[Group], dtype: torch.dtype):
        self.groups = groups
        n, width, out, rank = groups[0].shape
        device = groups[0].layers[0].lora_A[groups[0].name].weight.device
        self.down = torch.empty(len(groups), n, rank, width, device=device)
        self.up = torch.empty(len(groups), n, out, rank, device=device)
        self.down_grad, self.up_grad = torch.zeros_like(self.down), torch.zeros_like(self.up)
        self.live_down = torch.zeros(len(groups), n * rank, width, dtype=dtype, device=device)
        self.live_up = torch.zeros(len(groups), n * out, n * rank, dtype=dtype, device=device)
        for g, group in enumerate(groups):
            for i, layer in enumerate(group.layers):
                _move(layer.lora_A[group.name].weight, self.down[g, i])
                _move(layer.lora_B[group.name].weight, self.up[g, i])
        self.leaves = [(down.detach().requires_grad_(), up.detach().requires_grad_()) for down, up in zip(self.live_down, self.live_up, strict=True)]

    def _diagonal(self, joined: Tensor) -> Tensor:
        """(G, n, out, r): the blocks of (G, n out, n r) on its diagonal, as a view."""
        _, n, out, rank = self.up.shape
        return joined.view(-1, n, out, n, rank).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)

    @torch.no_grad()
    def publish(self) -> None:
        """Round the exact weights into the live ones."""
        self.live_down.copy_(self.down.flatten(1, 2))
        self._diagonal(self.live_up).copy_(self.up)

    @torch.no_grad()
    def gather(self) -> None:
        """Add the leaves' gradients to the exact ones and drop them."""
        self.down_grad.flatten(1, 2).add_(torch.stack([_grad(down) for down, _ in self.leaves]))
        self.up_grad.add_(self._diagonal(torch.stack([_grad(up) for _, up in self.leaves])))
        for pair in self.leaves:
            for leaf in pair:
                leaf.grad = None

    def bind(self) -> None:
        """Let PEFT's parameters see the gathered gradients as their own."""
        for g, group in enumerate(self.groups):
            for i, layer in enumerate(group.layers):
                layer.lora_A[group.name].weight.grad = self.down_grad[g, i]
                layer.lora_B[group.name].weight.grad = self.up_grad[g, i]


def _grad(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _move(parameter: nn.Parameter, place: Tensor) -> None:
    place.copy_(parameter.data)
    parameter.data = place


class Product(nn.Module):
    """The layers of a group as one module: (..., in) -> (..., n out)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, leaves: tuple[Tensor, Tensor], scale: float):
        super().__init__()
        # Not parameters of their own: they belong to the base and to the banks.
        self.operands = (weight, bias, *leaves)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return product(x, *self.operands, self.scale)[0]


@dataclass
class Fused:
    """A denoiser whose LoRA layers are fused. PEFT's parameters hold the exact weights all the while."""

    banks: list[Bank]
    _undo: list[Callable[[], object]] = field(default_factory=list)

    def publish(self) -> None:
        """Bring the live weights up to date with the exact ones."""
        for bank in self.banks:
            bank.publish()

    def gather(self) -> None:
        """Add what a backward pass left on the live weights to the exact weights' gradients."""
        for bank in self.banks:
            bank.gather()

    def bind(self) -> None:
        """Let PEFT's parameters see the gathered gradients as their own."""
        for bank in self.banks:
            bank.bind()

    def gradients(self) -> list[Tensor]:
        """All gathered gradients as a few large tensors."""
        return [grad for bank in self.banks for grad in (bank.down_grad, bank.up_grad)]

    def stand_in(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Let a module's forward pass be this one until `undo`."""
        before = module.__dict__.get("forward")
        module.__dict__["forward"] = forward
        self._undo.append(lambda: module.__dict__.pop("forward") if before is None else module.__dict__.update(forward=before))

    def after(self, act: Callable[[], object]) -> None:
        """Do this on `undo`, before what was changed earlier is put back."""
        self._undo.append(act)

    @torch.no_grad()
    def clear(self) -> None:
        """Forget all gradients."""
        self.drop()
        torch._foreach_zero_(self.gradients())

    def drop(self) -> None:
        """Forget what a backward pass left and nobody gathered."""
        for bank in self.banks:
            for pair in bank.leaves:
                for leaf in pair:
                    leaf.grad = None

    def undo(self) -> None:
        """Give PEFT's own layers back."""
        while self._undo:
            self._undo.pop()()


def obstacle(denoiser: nn.Module, name: str) -> str:
    """Why the adapter `name` cannot be fused; empty if it can."""
    layers = [(path, module) for path, module in denoiser.named_modules() if isinstance(module, LoraLayer)]
    odd = next((path for path, module in layers if not _plain(module, name)), "")
    if not layers:
        return "there is no LoRA layer"
    return f"{odd} is not a plain LoRA layer on a floating-point base" if odd else ""


def fuse(denoiser: nn.Module, name: str) -> Fused:
    """Fuse all LoRA layers of the adapter `name`; `obstacle` must have found none."""
    found: dict[Any, list[tuple[Group, nn.Module, str]]] = {}
    for group, owner, place in _groups(denoiser, name):
        found.setdefault((group.shape, group.layers[0].get_base_layer().weight.dtype), []).append((group, owner, place))
    made = Fused([])
    for (_, dtype), members in found.items():
        bank = Bank([group for group, _, _ in members], dtype)
        made.banks.append(bank)
        for number, ((group, owner, place), leaves) in enumerate(zip(members, bank.leaves, strict=True)):
            _install(made, Product(*_joined(group), leaves, group.scale), owner, place)
            if bank.down.is_cuda and number % RELEASED == 0:
                torch.cuda.empty_cache()  # what single layers took is too small for joined ones and would pile up
    for module in denoiser.modules():
        if any(isinstance(getattr(module, place, None), Product) for place in SHARED):
            _ask_for_shared(made, module)
    made.publish()
    made.bind()
    return made


def _groups(denoiser: nn.Module, name: str) -> Iterator[tuple[Group, nn.Module, str]]:
    """Every LoRA layer once, in groups of one input where diffusers can ask for the group: with its owner and place there."""
    taken: set[int] = set()
    for owner in list(denoiser.modules()):
        for place in _places(owner):
            layers = tuple(getattr(owner, layer, None) for layer in SHARED[place])
            if all(isinstance(layer, LoraLayer) for layer in layers) and _alike(layers, name):
                taken.update(map(id, layers))
                yield Group(layers, name), owner, place
    for module in list(denoiser.modules()):
        if isinstance(module, LoraLayer) and id(module) not in taken:
            yield Group((module,), name), module, ""


def _places(owner: nn.Module) -> tuple[str, ...]:
    """What diffusers would ask this module for if its projections were fused."""
    if not hasattr(owner, "fuse_projections") or not hasattr(owner, "to_q"):
        return ()
    return ("to_kv",) if getattr(owner, "is_cross_attention", False) else ("to_qkv", "to_added_qkv")


def _plain(layer: Any, name: str) -> bool:
    base = layer.get_base_layer()
    return (
        type(base) is nn.Linear
        and type(base.weight) is nn.Parameter  # quantised ones are of another class
        and base.weight.is_floating_point()
        and base.weight.dtype.itemsize > 1
        and list(layer.lora_A) == [name]
        and not layer.lora_bias[name]
        and not layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
    )


def _alike(layers: Sequence[Any], name: str) -> bool:
    facts = {(*Group((layer,), name).shape, layer.scaling[name], layer.get_base_layer().bias is None) for layer in layers}
    return len(facts) == 1


@torch.no_grad()
def _joined(group: Group) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the group as one; the base's own become views of them, so that nothing is kept twice."""
    bases = [layer.get_base_layer() for layer in group.layers]
    if len(bases) == 1:
        return bases[0].weight, bases[0].bias
    joined = []
    for kind in ("weight", "bias"):
        parts = [getattr(base, kind) for base in bases]
        if parts[0] is None:
            joined.append(None)
            continue
        whole = torch.cat([part.data for part in parts])
        for part, piece in zip(parts, whole.chunk(len(parts)), strict=True):
            part.data = piece
        joined.append(whole)
    return joined[0], joined[1]


def _install(made: Fused, module: Product, owner: nn.Module, place: str) -> None:
    if place:
        setattr(owner, place, module)
        made._undo.append(lambda: delattr(owner, place))
    else:
        made.stand_in(owner, module.forward)


def _ask_for_shared(made: Fused, attention: Any) -> None:
    """Make an attention ask for its shared products."""
    before, processor = getattr(attention, "fused_projections", False), attention.processor
    attention.fused_projections = True
    if isinstance(processor, AttnProcessor2_0):
        attention.set_processor(FusedAttnProcessor2_0())

    def back() -> None:
        attention.fused_projections = before
        attention.set_processor(processor)

    made._undo.append(back)
