"""FLUX.1's blocks for drawing: what they do between their products in few passes over memory, where the library takes dozens.

They call the same modules with the same inputs, so that whatever is put on those acts as it does on the library's blocks.
"""

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor, FluxSingleTransformerBlock, FluxTransformerBlock
from torch import Tensor, nn

from studio.families.kernels.modulated import added, added_and_modulated, joined, modulated
from studio.families.kernels.turned import turned_apart
from studio.families.lean import Lean

Rotary = tuple[Tensor, Tensor]
LARGEST = 65504.0  # of fp16


def transformer(model: nn.Module, made: Lean) -> None:
    """Let the blocks of a transformer run so, those that are the library's own."""
    for module in model.modules():
        if isinstance(module, FluxAttention) and _usual(module):
            made.replace(module, "forward", _attention)
        elif isinstance(module, FluxSingleTransformerBlock):
            made.replace(module, "forward", _single)
        elif isinstance(module, FluxTransformerBlock):
            made.replace(module, "forward", _double)


def _usual(attention: Any) -> bool:
    """Whether it is asked for queries, keys and values one by one, and its heads are what the kernel takes."""
    own = type(attention.processor) is FluxAttnProcessor and not attention.fused_projections
    return own and attention.head_dim & (attention.head_dim - 1) == 0 and getattr(attention.norm_q, "weight", None) is not None


def _attention(
    self: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    image_rotary_emb: Rotary | None = None,
) -> Any:
    assert image_rotary_emb is not None
    query, key, value = self.to_q(hidden_states), self.to_k(hidden_states), self.to_v(hidden_states)
    parts, norms = [(query, key)], [(self.norm_q.weight, self.norm_k.weight)]
    if encoder_hidden_states is not None:
        parts.insert(0, (self.add_q_proj(encoder_hidden_states), self.add_k_proj(encoder_hidden_states)))
        norms.insert(0, (self.norm_added_q.weight, self.norm_added_k.weight))
        value = torch.cat([self.add_v_proj(encoder_hidden_states), value], dim=1)
    query, key = turned_apart(parts, norms, image_rotary_emb, self.heads, self.norm_q.eps)
    return attended(self, (query, key, value.unflatten(-1, (self.heads, -1))), attention_mask, encoder_hidden_states)


def attended(attention: Any, heads: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, text: Tensor | None) -> Any:
    """What a FluxAttention gives for query, key and value (B, tokens, heads, d), those of `text` first where there is such a stream."""
    query, key, value = (part.transpose(1, 2) for part in heads)
    found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
    if text is None:
        return found
    of_text, of_image = found.split_with_sizes([text.shape[1], found.shape[1] - text.shape[1]], dim=1)
    return attention.to_out[1](attention.to_out[0](of_image.contiguous())), attention.to_add_out(of_text.contiguous())


def _single(
    self: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Rotary | None = None,
    joint_attention_kwargs: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    n = encoder_hidden_states.shape[1]
    hidden = torch.cat([encoder_hidden_states, hidden_states], dim=1)
    shift, scale, gate = self.norm.linear(self.norm.silu(temb)).chunk(3, dim=1)
    normal = modulated(hidden, scale, shift, self.norm.norm.eps)
    beside = self.attn(hidden_states=normal, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {}))
    hidden = bounded(added(hidden, gate, self.proj_out(joined(beside, self.proj_mlp(normal)))))
    return hidden[:, :n], hidden[:, n:]


def _double(
    self: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Rotary | None = None,
    joint_attention_kwargs: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    told = [norm.linear(norm.silu(temb)).chunk(6, dim=1) for norm in (self.norm1, self.norm1_context)]
    streams, norms = (hidden_states, encoder_hidden_states), (self.norm1.norm, self.norm1_context.norm)
    image, text = (modulated(x, scale, shift, norm.eps) for x, (shift, scale, *_), norm in zip(streams, told, norms, strict=True))
    products = self.attn(hidden_states=image, encoder_hidden_states=text, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {}))
    found = []
    for x, product, (_, _, gate, shift, scale, last), norm, feed in zip(
        streams, products, told, (self.norm2, self.norm2_context), (self.ff, self.ff_context), strict=True
    ):
        hidden, normal = added_and_modulated(x, gate, product, scale, shift, norm.eps)
        found.append(added(hidden, last, feed(normal)))
    return bounded(found[1]), found[0]


def bounded(hidden: Tensor) -> Tensor:
    """Numbers that fp16 can hold."""
    return hidden.clip(-LARGEST, LARGEST) if hidden.dtype == torch.float16 else hidden
