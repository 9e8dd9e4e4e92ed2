"""The parts of a FLUX.1 transformer and what a training step keeps of each. Source: diffusers' FluxTransformer2DModel and torch's derivative formulas."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studio.families.anatomy import Anatomy, Gathering, Unit

TIME = 256  # numbers that a time is embedded in before its two layers
MLP = 4  # times the width


@dataclass(frozen=True)
class _Net:
    """width: of a token; head: of an attention head; image, text: tokens."""

    width: int
    head: int
    image: int
    text: int

    @property
    def tokens(self) -> int:
        return self.image + self.text

    def double(self, number: int) -> Unit:
        """Picture and text, each with layers of its own, attend together."""
        name, width = f"transformer_blocks.{number}", self.width
        made, n = Gathering(f"{name}."), self.width * self.tokens
        for tensor in ("q", "k", "v", "out", "scaled"):
            made.tensor(tensor, n)
        for side, rows in (("", self.image), ("_context", self.text)):
            for tensor in ("x", "normed", "modulated", "q_plain", "k_plain", "v_plain", "attended", "x2", "normed2", "modulated2", "given"):
                made.tensor(f"{tensor}{side}", width * rows)
            for tensor in ("inner", "active"):
                made.tensor(f"{tensor}{side}", MLP * width * rows)
        made.tensor("temb", width)
        for side in ("", "_context"):
            wakes = tuple(f"{tensor}{side}" for tensor in ("normed", "attended", "normed2", "given"))
            made.linear(f"norm1{side}.linear", width, 6 * width, 1, "temb", wakes=wakes)
        for names, side, rows in ((("to_q", "to_k", "to_v"), "", self.image), (("add_q_proj", "add_k_proj", "add_v_proj"), "_context", self.text)):
            for layer in names:
                made.linear(f"attn.{layer}", width, width, rows, f"modulated{side}")
        made.linear("attn.to_out.0", width, width, self.image, "out")
        made.linear("attn.to_add_out", width, width, self.text, "out")
        for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            made.norm(f"attn.{norm}", self.head, bias=False)
        for side, rows in (("", self.image), ("_context", self.text)):
            made.linear(f"ff{side}.net.0.proj", width, MLP * width, rows, f"modulated2{side}")
            made.linear(f"ff{side}.net.2", MLP * width, width, rows, f"active{side}")
        kept = " ".join(f"x{side} q_plain{side} k_plain{side} x2{side} inner{side}" for side in ("", "_context")) + " q k v out"
        # Recorded steps make q, k and v by one product, of which v is copied beside the text's
        return made.unit(kept, f"{kept} v_plain v_plain_context", given=n, block=name)

    def single(self, number: int) -> Unit:
        name, width = f"single_transformer_blocks.{number}", self.width
        made, n = Gathering(f"{name}."), self.width * self.tokens
        for tensor in ("x", "normed", "modulated", "q_plain", "k_plain", "q", "k", "v", "out", "given"):
            made.tensor(tensor, n)
        made.tensor("inner", MLP * n)
        made.tensor("joined", (MLP + 1) * n)
        made.tensor("temb", width)
        made.linear("norm.linear", width, 3 * width, 1, "temb", wakes=("normed", "given"))
        made.linear("proj_mlp", width, MLP * width, self.tokens, "modulated")
        made.linear("proj_out", (MLP + 1) * width, width, self.tokens, "joined")
        for layer in ("to_q", "to_k", "to_v"):
            made.linear(f"attn.{layer}", width, width, self.tokens, "modulated")
        for norm in ("norm_q", "norm_k"):
            made.norm(f"attn.{norm}", self.head, bias=False)
        kept = "x q_plain k_plain q k v out inner"
        return made.unit(kept, kept, given=n, block=name)


def anatomy(config: Mapping[str, Any], text_tokens: int, height: int, width: int) -> Anatomy:
    """The transformer for latents of that height and width, 2 x 2 of which make a token, in the order of its forward pass."""
    head = int(config["attention_head_dim"])
    inner, channels, pooled = int(config["num_attention_heads"]) * head, int(config["in_channels"]), int(config["pooled_projection_dim"])
    image = (height // 2) * (width // 2)
    net = _Net(inner, head, image, text_tokens)
    first, text = Gathering(""), int(config["joint_attention_dim"])
    first.linear("x_embedder", channels, inner, image)
    first.linear("context_embedder", text, inner, text_tokens)
    times = ["timestep_embedder", *(["guidance_embedder"] if config.get("guidance_embeds") else [])]
    for name, inputs in (*((time, TIME) for time in times), ("text_embedder", pooled)):
        first.linear(f"time_text_embed.{name}.linear_1", inputs, inner, 1)
        first.linear(f"time_text_embed.{name}.linear_2", inner, inner, 1)
    last, out = Gathering(""), int(config.get("out_channels") or channels)
    last.tensor("x", inner * image)
    last.linear("norm_out.linear", inner, 2 * inner, 1)
    last.linear("proj_out", inner, out, image)
    units = [
        first.unit("", "", recomputed=False),
        *(net.double(i) for i in range(int(config["num_layers"]))),
        *(net.single(i) for i in range(int(config["num_single_layers"]))),
        last.unit("x", "x", recomputed=False),
    ]
    return Anatomy(tuple(units), latents=channels * image, conditioning=text_tokens * text + pooled)
