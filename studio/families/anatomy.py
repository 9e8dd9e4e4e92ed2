"""What a denoiser is made of and what passes through it, by its config alone: sizes for a memory plan, without weights and without torch.

A unit is what gradient checkpointing recomputes as one. Sizes are of one picture and in numbers, not bytes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from studio.families.away import SLOTS


@dataclass(frozen=True)
class Layer:
    """A module with weights. shape: (out, in), (out, in, k, k), or (width,) of a norm.

    rows: how often it is applied to one picture. reads: name of the tensor it reads. wakes: tensors that are kept once it is trained.
    """

    name: str
    shape: tuple[int, ...]
    bias: bool = True
    rows: int = 0
    reads: str = ""
    wakes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return prod(self.shape) + (self.shape[0] if self.bias else 0)

    @property
    def linear(self) -> bool:
        return len(self.shape) == 2

    @property
    def repeated(self) -> bool:
        """Whether it stands in a numbered block, as those do that are quantised."""
        return any(word.isdecimal() for word in self.name.split(".")[1:-1])

    @property
    def inputs(self) -> int:
        return prod(self.shape[1:])

    @property
    def outputs(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class Unit:
    """tensors: by name, those that are made in it. keeps: what the backward pass reads if the base is frozen and the input has a gradient.

    lean: the same in recorded steps, whose norms and gates make again what they need. given: what it is handed, kept where it is
    recomputed. block: name of the repeated block it belongs to, empty outside of any. recomputed: whether checkpointing reaches it.
    """

    name: str
    layers: tuple[Layer, ...]
    tensors: Mapping[str, int]
    keeps: frozenset[str]
    lean: frozenset[str]
    given: int = 0
    block: str = ""
    recomputed: bool = True

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    def kept(self, trained: Iterable[Layer], *, lean: bool) -> int:
        """Numbers kept for the backward pass, the inputs of trained layers among them."""
        names = set(self.lean if lean else self.keeps)
        for layer in trained:
            names |= {layer.reads, *layer.wakes} - {""}
        return sum(self.tensors[name] for name in names)

    @property
    def largest(self) -> int:
        return max(self.tensors.values(), default=0)


@dataclass(frozen=True)
class Anatomy:
    """A denoiser at one size of picture. shared: tensors that many layers read, such as the text's, once."""

    units: tuple[Unit, ...]
    shared: int = 0
    latents: int = 0
    conditioning: int = 0

    def layers(self) -> Iterator[Layer]:
        for unit in self.units:
            yield from unit.layers

    @property
    def parameters(self) -> int:
        return sum(unit.parameters for unit in self.units)


@dataclass(frozen=True)
class Encoder:
    """A part that is there only for caching. working: numbers in flight at its peak for one picture or caption; own: bytes of its number if it has one."""

    name: str
    parameters: int
    working: int
    own: int | None = None
    kept: int = 0  # numbers kept for the backward pass where it is trained; 0 if it never is
    through: int = 0  # the same where a gradient only passes through it, to new words
    per_rank: int = 0  # numbers of a LoRA of rank 1 on its attention
    blocks: int = 0  # that can wait in main memory
    block: int = 0  # numbers of each of them

    @property
    def streamed(self) -> int:
        """Numbers on the device while all its blocks wait, the ring's buffers among them."""
        return self.parameters - max(0, self.blocks - SLOTS) * self.block


@dataclass(frozen=True)
class Measures:
    """A base at one size of picture: its denoiser, its text encoders, its VAE on the way in and on the way out."""

    denoiser: Anatomy
    text: tuple[Encoder, ...]
    encode: Encoder
    decode: Encoder


@dataclass
class Gathering:
    """The layers and tensors of a unit while it is written down."""

    prefix: str
    layers: list[Layer] = field(default_factory=list)
    tensors: dict[str, int] = field(default_factory=dict)

    def tensor(self, name: str, n: int) -> str:
        self.tensors[name] = n
        return name

    def linear(self, name: str, inputs: int, outputs: int, rows: int, reads: str = "", *, bias: bool = True, wakes: tuple[str, ...] = ()) -> None:
        self.layers.append(Layer(self.prefix + name, (outputs, inputs), bias, rows, reads, wakes))

    def conv(self, name: str, inputs: int, outputs: int, rows: int, reads: str = "", kernel: int = 3) -> None:
        self.layers.append(Layer(self.prefix + name, (outputs, inputs, kernel, kernel), True, rows, reads))

    def norm(self, name: str, width: int, *, bias: bool = True) -> None:
        self.layers.append(Layer(self.prefix + name, (width,), bias))

    def unit(self, keeps: str, lean: str, *, given: int = 0, block: str = "", recomputed: bool = True) -> Unit:
        """keeps, lean: names of tensors, by blanks."""
        name = self.prefix.rstrip(".")
        return Unit(name, tuple(self.layers), self.tensors, frozenset(keeps.split()), frozenset(lean.split()), given, block, recomputed)


def several(value: Any, n: int) -> list[int]:
    """A setting of diffusers that is one number for all blocks or one for each."""
    return [int(value)] * n if isinstance(value, int) else [int(one) for one in value]


def clip(config: Mapping[str, Any], name: str, *, projected: bool) -> Encoder:
    """A CLIP text encoder."""
    width, inner, depth = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    length = int(config["max_position_embeddings"])
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    total = (int(config["vocab_size"]) + length) * width + depth * layer + 2 * width + (int(config["projection_dim"]) * width if projected else 0)
    # Of a layer: two norms' inputs and outputs, q, k, v, what attention gives, and the inner layer before and after its activation with its gate
    kept = depth * length * (8 * width + 3 * inner)
    through = depth * length * (6 * width + (2 if config.get("hidden_act") == "quick_gelu" else 1) * inner)  # what frozen layers read is not kept
    return Encoder(name, total, working=length * (6 * width + 3 * inner), kept=kept, through=through, per_rank=depth * 8 * width)


def t5(config: Mapping[str, Any], name: str, tokens: int) -> Encoder:
    """T5's encoder, at its widest where it attends: scores of all heads, twice in its number format and once in fp32."""
    width, inner, depth, heads = (int(config[key]) for key in ("d_model", "d_ff", "num_layers", "num_heads"))
    across = heads * int(config["d_kv"])
    gated = str(config.get("feed_forward_proj", "")).startswith("gated")
    layer = 4 * width * across + (3 if gated else 2) * width * inner + 2 * width
    total = int(config["vocab_size"]) * width + depth * layer + int(config["relative_attention_num_buckets"]) * heads + width
    # Of a layer: scores in fp32 and rounded, two norms' inputs in fp32, q, k, v, and the gate, whose gelu is written out
    through = depth * (3 * heads * tokens * tokens + tokens * (6 * width + 3 * across + 6 * inner))
    working = 4 * heads * tokens * tokens + tokens * (6 * width + 3 * inner)
    return Encoder(name, total, working=working, through=through, blocks=depth, block=layer)


def vae(config: Mapping[str, Any], height: int, width: int) -> tuple[Encoder, Encoder]:
    """The VAE as it encodes and as it decodes a picture of that size in pixels, both in fp32.

    Its first level is the widest: so many tensors of its width and of the whole picture are in flight at the peak, a convolution's
    workspace among them. Measured: NVIDIA H100, torch 2.11, `torch.cuda.max_memory_allocated` at 512 and 1024 px, 5.8 to 6.1 and 9.2 to 9.6.
    """
    widths = [int(n) for n in config["block_out_channels"]]
    n, latent, pixels = int(config["layers_per_block"]), int(config["latent_channels"]), height * width
    total = _autoencoder(widths, n, latent, config)
    first = widths[0] * pixels
    return Encoder("vae", total, working=int(ENCODING * first), own=4), Encoder("vae", total, working=int(DECODING * first), own=4)


ENCODING, DECODING = 6.1, 9.6


def _autoencoder(widths: list[int], n: int, latent: int, config: Mapping[str, Any]) -> int:
    def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
        return inputs * outputs * kernel**2 + outputs

    def resnet(inputs: int, outputs: int) -> int:
        return 2 * inputs + conv(inputs, outputs) + 2 * outputs + conv(outputs, outputs) + (conv(inputs, outputs, 1) if inputs != outputs else 0)

    last = widths[-1]
    middle = 2 * resnet(last, last) + 2 * last + 4 * (last * last + last)
    total = conv(int(config["in_channels"]), widths[0]) + middle + 2 * last + conv(last, 2 * latent)
    total += conv(latent, last) + middle + 2 * widths[0] + conv(widths[0], int(config["out_channels"]))
    before = widths[0]
    for i, width in enumerate(widths):
        total += resnet(before, width) + (n - 1) * resnet(width, width) + (conv(width, width) if i < len(widths) - 1 else 0)
        before = width
    before = last
    for i, width in enumerate(reversed(widths)):
        total += resnet(before, width) + n * resnet(width, width) + (conv(width, width) if i < len(widths) - 1 else 0)
        before = width
    quant = conv(2 * latent, 2 * latent, 1) if config.get("use_quant_conv", True) else 0
    return total + quant + (conv(latent, latent, 1) if config.get("use_post_quant_conv", True) else 0)
