"""Sizes of the demo models: SDXL's and FLUX.1's own structures, made about 250 and 1,000 times smaller."""

from dataclasses import dataclass
from typing import Any

import torch

LATENT_CHANNELS = 16
CLIP_WIDTH = 128
T5_WIDTH = 192


@dataclass(frozen=True)
class Sizes:
    """Widths that tests shrink; the defaults are the shipped models'. Tuples of int, which diffusers declares as of one."""

    vae: Any = (32, 64, 96, 128)
    unet: Any = (96, 112, 128)
    unet_heads: Any = (6, 7, 8)
    transformer_heads: int = 8
    single_blocks: int = 5


TINY = Sizes(vae=(16, 16, 16, 16), unet=(16, 16, 16), unet_heads=(1, 1, 1), transformer_heads=1, single_blocks=1)


def vae(sizes: Sizes) -> Any:
    from diffusers import AutoencoderKL

    down: Any = ("DownEncoderBlock2D",) * 4
    up: Any = ("UpDecoderBlock2D",) * 4
    return AutoencoderKL(
        block_out_channels=sizes.vae,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=128,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
    )


def clip(n_tokens: int, projected: bool = False) -> Any:
    """A CLIP text encoder; `projected` makes it SDXL's second one."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=n_tokens,
        hidden_size=CLIP_WIDTH,
        intermediate_size=4 * CLIP_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=CLIP_WIDTH,
        hidden_act="gelu" if projected else "quick_gelu",
        bos_token_id=n_tokens - 2,
        eos_token_id=n_tokens - 1,
        pad_token_id=n_tokens - 1,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def t5(n_tokens: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=n_tokens,
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=512,
            num_layers=3,
            num_heads=6,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def unet(sizes: Sizes) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=sizes.unet,
        layers_per_block=2,
        norm_num_groups=16,
        cross_attention_dim=2 * CLIP_WIDTH,
        transformer_layers_per_block=1,
        attention_head_dim=sizes.unet_heads,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=CLIP_WIDTH + 6 * 32,
    )


def transformer(sizes: Sizes) -> Any:
    """FLUX.1's transformer, its modulation zero at first so that every block begins as the identity."""
    from diffusers import FluxTransformer2DModel

    model: Any = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=sizes.single_blocks,
        attention_head_dim=32,
        num_attention_heads=sizes.transformer_heads,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    linears = [model.proj_out, model.norm_out.linear, *(block.norm.linear for block in model.single_transformer_blocks)]
    linears += [norm.linear for block in model.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    for linear in linears:
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    return model
