"""A frozen denoiser made cheap to pass through both ways: what `families.lean` does, the faster attention, compiled blocks.

Everything here computes what the library's modules compute; `Lean.undo` puts those back.
"""

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from studio.families.flux_lean import attended
from studio.families.kernels.turned import turned
from studio.families.lean import Lean, convolutions
from studio.families.offload import is_waiting

HOPPER = (9, 0)  # where cuDNN's attention was measured against the others, forward and backward: 1.2 to 1.9 times as fast


def lean(denoiser: nn.Module, device: torch.device, *, compiled: bool) -> Lean:
    """Make the denoiser cheap. Batches of every shape are compiled on their first pass, if at all."""
    made = Lean()
    convolutions(denoiser, made)
    for module in denoiser.modules():
        if isinstance(module, FluxAttention) and _joined(module):
            made.replace(module, "forward", _joint_attention)
    if device.type == "cuda":
        _attention(made, device)
    if compiled:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)  # every shape of batch counts
        denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False)  # type: ignore[operator]
        made._undo.append(lambda: _interpreted(denoiser))
    return made


def recompute(denoiser: Any, share: float) -> None:
    """Recompute the activations of a share of the blocks in the backward pass, evenly spread; nothing random happens inside them.

    Unlike the library's way it asks for no state of a random generator, which a recorded step cannot be asked for.
    """
    if share <= 0:
        denoiser.disable_gradient_checkpointing()
        return
    seen: dict[int, bool] = {}

    def chosen(block: nn.Module) -> bool:
        if id(block) not in seen:
            n = len(seen)
            seen[id(block)] = int((n + 1) * share) > int(n * share)
        return seen[id(block)]

    def passed(block: Any, *inputs: Any) -> Any:
        if not is_waiting(block) and chosen(block):  # one that waits in main memory sees to it by itself
            return checkpoint(block.__call__, *inputs, use_reentrant=False, preserve_rng_state=False)
        return block(*inputs)

    denoiser.enable_gradient_checkpointing(passed)


def _joined(attention: Any) -> bool:
    """Whether queries, keys and values come as one product, of every stream, and the heads are what the kernel takes."""
    streams = ("to_qkv",) if attention.added_kv_proj_dim is None else ("to_qkv", "to_added_qkv")
    whole = attention.fused_projections and all(hasattr(attention, place) for place in streams)
    return whole and type(attention.processor) is FluxAttnProcessor and attention.head_dim & (attention.head_dim - 1) == 0


def _joint_attention(
    self: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    image_rotary_emb: tuple[Tensor, Tensor] | None = None,
) -> Any:
    """FluxAttention: norms and positions of queries and keys in one go."""
    assert image_rotary_emb is not None
    two = encoder_hidden_states is not None
    norms = [self.norm_q, self.norm_k, *((self.norm_added_q, self.norm_added_k) if two else ())]
    text = self.to_added_qkv(encoder_hidden_states) if two else None
    heads = turned(self.to_qkv(hidden_states), text, [norm.weight for norm in norms], image_rotary_emb, self.heads, norms[0].eps)
    return attended(self, heads, attention_mask, encoder_hidden_states)


def _attention(made: Lean, device: torch.device) -> None:
    """cuDNN's attention where it was measured to be right and faster, else torch's own choice without it."""
    flags = torch.backends.cuda
    fast = torch.cuda.get_device_capability(device) == HOPPER
    made.switch(flags.cudnn_sdp_enabled, flags.enable_cudnn_sdp, fast)
    if fast:
        made.switch(flags.flash_sdp_enabled, flags.enable_flash_sdp, False)


def _interpreted(denoiser: nn.Module) -> None:
    for module in denoiser.modules():
        module._compiled_call_impl = None
