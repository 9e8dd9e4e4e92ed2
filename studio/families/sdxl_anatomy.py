"""The parts of an SDXL U-Net and what a training step keeps of each. Source: diffusers' UNet2DConditionModel and torch's derivative formulas."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from studio.families.anatomy import Anatomy, Gathering, Unit, several

EMBEDDING = 4  # times the first width: the time embedding


@dataclass
class _Net:
    """config and sizes: of the text (tokens, width) and of the latents."""

    config: Mapping[str, Any]
    text: tuple[int, int]
    height: int
    width: int

    @property
    def temb(self) -> int:
        return EMBEDDING * int(self.config["block_out_channels"][0])

    def pixels(self, level: int) -> int:
        return -(-self.height // 2**level) * -(-self.width // 2**level)

    def ends(self, first: bool) -> Unit:
        """What stands before the blocks, and after them."""
        c, made = self.config, Gathering("")
        width, pixels = int(c["block_out_channels"][0]), self.pixels(0)
        if not first:
            for name in ("hidden", "normed", "active"):
                made.tensor(name, width * pixels)
            made.norm("conv_norm_out", width)
            made.conv("conv_out", width, int(c["out_channels"]), pixels, "active")
            return made.unit("hidden normed active", "hidden normed active", recomputed=False)
        made.tensor("latents", int(c["in_channels"]) * pixels)
        made.conv("conv_in", int(c["in_channels"]), width, pixels, "latents")
        for name, inputs in (("time_embedding", width), ("add_embedding", int(c["projection_class_embeddings_input_dim"]))):
            made.linear(f"{name}.linear_1", inputs, self.temb, 1)
            made.linear(f"{name}.linear_2", self.temb, self.temb, 1)
        return made.unit("", "", recomputed=False)

    def resnet(self, name: str, inputs: int, outputs: int, level: int, block: str) -> Unit:
        """Each norm keeps its input, each SiLU what it is given, each convolution what it reads."""
        made, pixels = Gathering(f"{name}."), self.pixels(level)
        for tensor in ("x", "normed1", "active1"):
            made.tensor(tensor, inputs * pixels)
        for tensor in ("hidden", "normed2", "active2"):
            made.tensor(tensor, outputs * pixels)
        made.tensor("time", self.temb)
        made.norm("norm1", inputs)
        made.conv("conv1", inputs, outputs, pixels, "active1")
        made.linear("time_emb_proj", self.temb, outputs, 1, "time")
        made.norm("norm2", outputs)
        made.conv("conv2", outputs, outputs, pixels, "active2")
        if inputs != outputs:
            made.conv("conv_shortcut", inputs, outputs, pixels, "x", 1)
        return made.unit("x normed1 active1 hidden normed2 active2", "x active1 hidden active2", given=inputs * pixels, block=block)

    def sampler(self, name: str, channels: int, level: int) -> Unit:
        """A convolution to the next size; level: that of what it reads."""
        made = Gathering(f"{name}.")
        made.tensor("x", channels * self.pixels(level))
        made.conv("conv", channels, channels, self.pixels(level), "x")
        return made.unit("x", "x", recomputed=False)

    def attention(self, name: str, channels: int, level: int, depth: int, block: str) -> Iterator[Unit]:
        """A Transformer2DModel: its way in and out, and its blocks."""
        made, pixels = Gathering(f"{name}."), self.pixels(level)
        for tensor in ("x", "tokens", "result"):
            made.tensor(tensor, channels * pixels)
        made.norm("norm", channels)
        if self.config.get("use_linear_projection"):
            made.linear("proj_in", channels, channels, pixels, "tokens")
            made.linear("proj_out", channels, channels, pixels, "result")
        else:
            made.conv("proj_in", channels, channels, pixels, "tokens", 1)
            made.conv("proj_out", channels, channels, pixels, "result", 1)
        yield made.unit("x", "x", block=block, recomputed=False)
        for i in range(depth):
            yield self.transformer(f"{name}.transformer_blocks.{i}", channels, pixels, f"{name}.transformer_blocks.{i}")

    def transformer(self, name: str, channels: int, rows: int, block: str) -> Unit:
        """Attention keeps its three inputs and its output, a LayerNorm its input, GEGLU both halves and the gate's activation."""
        made, (tokens, text) = Gathering(f"{name}."), self.text
        n = channels * rows
        for tensor in ("x", "normed1", "q1", "k1", "v1", "out1", "x2", "normed2", "q2", "out2", "x3", "normed3"):
            made.tensor(tensor, n)
        for tensor in ("k2", "v2"):
            made.tensor(tensor, channels * tokens)
        made.tensor("joined", 8 * n)
        made.tensor("gate", 4 * n)
        made.tensor("gated", 4 * n)
        made.tensor("text", 0)  # one for the whole net, see Anatomy.shared
        for number, read in ((1, "normed1"), (2, "text")):
            width, count = (channels, rows) if number == 1 else (text, tokens)
            made.norm(f"norm{number}", channels)
            made.linear(f"attn{number}.to_q", channels, channels, rows, f"normed{number}", bias=False)
            made.linear(f"attn{number}.to_k", width, channels, count, read, bias=False)
            made.linear(f"attn{number}.to_v", width, channels, count, read, bias=False)
            made.linear(f"attn{number}.to_out.0", channels, channels, rows, f"out{number}")
        made.norm("norm3", channels)
        made.linear("ff.net.0.proj", channels, 8 * channels, rows, "normed3")
        made.linear("ff.net.2", 4 * channels, channels, rows, "gated")
        kept = "x q1 k1 v1 out1 x2 q2 k2 v2 out2 x3 joined"
        return made.unit(f"{kept} gate", kept, given=n, block=block)


def anatomy(config: Mapping[str, Any], text_tokens: int, height: int, width: int) -> Anatomy:
    """The U-Net for latents of that height and width, in the order of its forward pass."""
    net = _Net(config, (text_tokens, int(config["cross_attention_dim"])), height, width)
    widths = [int(n) for n in config["block_out_channels"]]
    layers = several(config.get("layers_per_block", 2), len(widths))
    depths = several(config.get("transformer_layers_per_block", 1), len(widths))
    units, skips = [net.ends(first=True)], [widths[0]]
    before = widths[0]
    for i, kind in enumerate(config["down_block_types"]):
        for j in range(layers[i]):
            units.append(net.resnet(f"down_blocks.{i}.resnets.{j}", before, widths[i], i, f"down_blocks.{i}"))
            if "CrossAttn" in kind:
                units += net.attention(f"down_blocks.{i}.attentions.{j}", widths[i], i, depths[i], f"down_blocks.{i}")
            before = widths[i]
            skips.append(before)
        if i < len(widths) - 1:
            units.append(net.sampler(f"down_blocks.{i}.downsamplers.0", before, i))
            skips.append(before)
    last = len(widths) - 1
    units.append(net.resnet("mid_block.resnets.0", before, before, last, "mid_block"))
    units += net.attention("mid_block.attentions.0", before, last, depths[-1], "mid_block")
    units.append(net.resnet("mid_block.resnets.1", before, before, last, "mid_block"))
    for i, kind in enumerate(config["up_block_types"]):
        level = last - i
        for j in range(layers[level] + 1):
            units.append(net.resnet(f"up_blocks.{i}.resnets.{j}", before + skips.pop(), widths[level], level, f"up_blocks.{i}"))
            if "CrossAttn" in kind:
                units += net.attention(f"up_blocks.{i}.attentions.{j}", widths[level], level, depths[level], f"up_blocks.{i}")
            before = widths[level]
        if level:
            units.append(net.sampler(f"up_blocks.{i}.upsamplers.0", before, level - 1))
    units.append(net.ends(first=False))
    pooled = int(config["projection_class_embeddings_input_dim"]) - 6 * int(config["addition_time_embed_dim"])
    text = text_tokens * net.text[1]
    return Anatomy(tuple(units), shared=text, latents=int(config["in_channels"]) * net.pixels(0), conditioning=text + pooled)
