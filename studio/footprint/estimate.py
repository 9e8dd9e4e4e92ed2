"""Bytes that a run takes, part by part, in each of its phases."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from studio.config import TrainConfig
from studio.families import away
from studio.families.anatomy import Encoder, Layer, Measures
from studio.families.base import Base, Facts, Family
from studio.footprint import adapters
from studio.footprint.adapters import Trained

BITS = {"int8": 8.0, "fp8": 8.0, "nf4": 4.0}
BLOCK = 64  # numbers with one nf4 scale
SCALED_FEWEST = 1024  # features of a layer below which it stays out of products in 8 bits
SAMPLES = "samples"
RESIDENT = 2**30  # most that encodings take on the device

# Measured on an NVIDIA H100 with torch 2.11+cu130 on steps as `python -m studio.bench.smallcards` takes them, see assets/docs/performance.md; bytes.
DRIVER = 920_000_000  # context and kernels, beside what torch's allocator has: 650 MB at first, 790 to 920 MB after some steps
IN_FLIGHT = 3  # tensors of the largest size that a backward pass works with beside what was kept: 1.7 to 3.8
SPARE = {"eager": 140_000_000, "quantised": 390_000_000, "recorded": 590_000_000}  # reserved and not in use: 50 to 420, 320 to 730, 470 to 840 MB
SPARE_SHARE = 0.02  # of the activations, likewise
SPARE_EACH = 5  # of every trained number, likewise: 1.2 GB at rank 128 on SDXL


@dataclass(frozen=True)
class Card:
    """cuda: an NVIDIA or AMD GPU. budget: bytes the run may take, driver included; host: main memory that blocks may wait in. 0 if nobody knows."""

    cuda: bool
    budget: int = 0
    host: int = 0


@dataclass(frozen=True)
class Way:
    """How a run takes its steps.

    recomputed: share of the blocks whose activations are made again. offload: share of the base's blocks that wait in main memory.
    buffers: of the ring that they come to. apart: parts that do not fit while they encode: text encoders come block by block, the VAE works on the CPU.
    """

    format: str = "full"
    recomputed: float = 0.0
    offload: float = 0.0
    buffers: int = away.SLOTS
    recorded: bool = False
    apart: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Footprint:
    """phases: name -> part -> bytes. What the run takes is what its largest phase takes; samples that do not fit are left out."""

    phases: Mapping[str, Mapping[str, int]]
    parameters: int

    @property
    def peak(self) -> int:
        return self.total(self.where)

    @property
    def where(self) -> str:
        """The largest phase."""
        return max((phase for phase in self.phases if phase != SAMPLES), key=self.total)

    def total(self, phase: str) -> int:
        return sum(self.phases.get(phase, {}).values())


@dataclass(frozen=True)
class Job:
    """What is to be trained, on what. pictures: how many are encoded. height, width: of the largest bucket, pixels."""

    config: TrainConfig
    base: Base
    family: Family
    card: Card
    height: int
    width: int
    pictures: int = 20

    @property
    def side(self) -> int:
        """Of the square with as many pixels, as `resolution` means it."""
        return round(math.sqrt(self.height * self.width))

    @property
    def facts(self) -> Facts:
        return self.family.facts

    @cached_property
    def measures(self) -> Measures:
        return self.family.measures(self.base, self.height, self.width)

    @cached_property
    def trained(self) -> dict[str, Trained]:
        return adapters.trained(self.measures.denoiser, self.facts, self.config)

    @cached_property
    def kept_sizes(self) -> dict[str, dict[str, int]]:
        """What `frozen` found, by format."""
        return {}

    @cached_property
    def kept_blocks(self) -> dict[str, dict[str, int]]:
        """Bytes of the blocks, by format."""
        return {}

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the frozen base."""
        wanted = self.config.precision
        return 2 if wanted in ("bf16", "fp16") or (wanted == "auto" and self.card.cuda) else 4

    @property
    def batch(self) -> int:
        """Pictures that pass through at once; of a pair both."""
        return (self.config.batch_size or 1) * (2 if self.config.preference_beta is not None else 1)

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """Text encoders that are there in training: trained too, or read because of new words."""
        return tuple(one for one in self.measures.text if one.kept or self.config.word_t5) if self.config.reads_live else ()


def estimate(job: Job, way: Way) -> Footprint:
    """What the run takes if it goes that way."""
    driver = DRIVER if job.card.cuda else 0
    shapes = [shape for one in job.trained.values() for shape in one.shapes(job.config.network)]
    beside = job.config.rank or 0
    if job.config.text_encoder_learning_rate:
        shapes += [(beside, encoder.per_rank // 2) for encoder in job.encoders if encoder.per_rank for _ in range(2)]
    parameters = sum(math.prod(shape) for shape in shapes)
    held = _held(job, way, shapes)
    phases = _caching(job, way, driver)
    phases["training"] = held | _stepping(job, way, parameters) | {"driver": driver}
    if job.config.sample_every:
        phases[SAMPLES] = _sampling(job, way, held, driver)
    return Footprint({name: {part: size for part, size in parts.items() if size} for name, parts in phases.items()}, parameters)


def frozen(job: Job, way: Way) -> dict[str, int]:
    """Bytes of each tensor of the frozen base."""
    if way.format in job.kept_sizes:
        return job.kept_sizes[way.format]
    found = job.kept_sizes[way.format] = {}
    for layer in job.measures.denoiser.layers():
        n = math.prod(layer.shape)
        if way.format in BITS and layer.linear and layer.repeated:
            found[f"{layer.name}.codes"] = int(n * BITS[way.format] / 8)
            found[f"{layer.name}.scales"] = 4 * n // BLOCK if way.format == "nf4" else job.itemsize * layer.outputs
        else:
            found[f"{layer.name}.weight"] = n * job.itemsize
        if layer.bias:
            found[f"{layer.name}.bias"] = layer.outputs * job.itemsize
    return found


def blocks(job: Job, way: Way) -> dict[str, int]:
    """Bytes of each block that can wait in main memory."""
    if way.format not in job.kept_blocks:
        job.kept_blocks[way.format] = away.blocks(frozen(job, way))
    return job.kept_blocks[way.format]


def _held(job: Job, way: Way, shapes: list[tuple[int, ...]]) -> dict[str, int]:
    """What is there from the first step to the last."""
    config, numbers = job.config, sum(math.prod(shape) for shape in shapes)
    sizes = frozen(job, way)
    base = away.on_device(sizes, way.offload, way.buffers)
    if config.fp8_products and way.recorded:  # twice in 8 bits, while the exact weights rest in main memory
        base += sum((2 - job.itemsize) * math.prod(layer.shape) for layer in job.measures.denoiser.layers() if _scaled(layer))
    rounded = job.itemsize < 4
    if way.recorded:
        live = job.itemsize * (adapters.live_numbers(job.trained) if rounded else numbers)
        weights = 4 * numbers + live
    else:
        weights = 4 * numbers + (job.itemsize * numbers if rounded else 0)
    started = job.itemsize * numbers if config.init in ("pissa", "olora") else 0
    return {
        "base": base,
        "text encoders": sum(encoder.parameters for encoder in job.encoders) * job.itemsize,
        "adapter": weights + started + (4 * numbers if config.ema_decay else 0),
        "optimizer": adapters.state_bytes(config.optimizer, shapes),
        "encodings": _resident(job),
    }


def _stepping(job: Job, way: Way, numbers: int) -> dict[str, int]:
    """What comes and goes in a step: activations and what the passes work with, or at the end of it the gradients, whichever is more."""
    kept, inner = activations(job, way)
    flight = IN_FLIGHT * max(unit.largest for unit in job.measures.denoiser.units) * job.itemsize * job.batch
    learns = job.config.text_encoder_learning_rate is not None
    kept += sum(encoder.kept if learns and encoder.kept else encoder.through for encoder in job.encoders) * job.itemsize * job.batch
    gradients = 4 * numbers
    stays = gradients if way.recorded or job.config.gradient_accumulation > 1 else 0  # else they come after the activations are gone
    works = kept + inner + flight
    found = {"gradients": stays or max(0, gradients - works), "activations": kept, "working": inner + flight}
    if job.card.cuda:
        kind = "recorded" if way.recorded else "quantised" if way.format in BITS else "eager"
        found["allocator"] = SPARE[kind] + int(SPARE_SHARE * kept) + SPARE_EACH * numbers
    return found


def activations(job: Job, way: Way) -> tuple[int, int]:
    """Bytes kept from the forward pass to the backward pass, and those of the largest block that is recomputed.

    Nothing is kept before the first trained layer: no gradient gets there.
    """
    net, rows = job.measures.denoiser, dict(adapters.per_layer(job.measures.denoiser, job.trained))
    waiting = set(_waiting(job, way))
    live, recomputable, kept, inner = bool(job.encoders), 0, net.shared, 0
    for number, unit in enumerate(net.units):
        here, again = rows[number], False
        live = live or bool(here)
        size = unit.kept((one.layer for one in here), lean=way.recorded) + sum(_beside(one, job.config) for one in here)
        if unit.recomputed:
            waits = away.block_of(f"{unit.name}.") in waiting
            if not waits:
                again = int((recomputable + 1) * way.recomputed) > int(recomputable * way.recomputed)
                recomputable += 1
            again = again or waits
        if live:
            kept += unit.given if again else size
            inner = max(inner, size if again else 0)
    each = job.itemsize * job.batch
    return kept * each, inner * each


def _waiting(job: Job, way: Way) -> list[str]:
    """Names of the blocks that wait in main memory."""
    return away.chosen(blocks(job, way), way.offload) if way.offload else []


def _beside(one: Trained, config: TrainConfig) -> int:
    """Numbers that the layer's own adapter keeps of one picture: its inner product; with dropout its own input; whole deltas where a kind makes them."""
    layer, rank = one.layer, one.rank
    found = layer.rows * rank
    if config.dropout:
        found += layer.rows * (layer.inputs // math.prod(layer.shape[2:]))
    if config.network == "dora":
        found += layer.rows * layer.outputs
    if config.network in ("loha", "lokr"):
        found = 2 * layer.inputs * layer.outputs // max(1, config.batch_size or 1)  # once for a batch
    return found


def _resident(job: Job) -> int:
    """Encodings that stay on the device: latents in fp32, conditioning in the base's number format."""
    net = job.measures.denoiser
    return min(RESIDENT, job.pictures * (4 * net.latents + job.itemsize * net.conditioning))


def _caching(job: Job, way: Way, driver: int) -> dict[str, dict[str, int]]:
    """Captions first, then pictures; encoders are there one kind at a time."""
    found: dict[str, dict[str, int]] = {}
    text, picture = job.measures.text, job.measures.encode
    own = {one.name: 4 if job.config.precision == "fp16" and not one.per_rank else job.itemsize for one in text}  # T5 overflows in fp16
    streamed = "text" in way.apart
    weights = sum(_numbers(one, way) * own[one.name] for one in text)
    working = max(one.working * own[one.name] for one in text) * (away.AT_ONCE if streamed else 1)
    found["captions"] = {"text encoders": weights, "working": working, "driver": driver}
    if "vae" not in way.apart:
        found["pictures"] = {"vae": 4 * picture.parameters, "working": 4 * picture.working, "driver": driver}
    return found


def _numbers(encoder: Encoder, way: Way) -> int:
    """Of a text encoder, on the device while it encodes."""
    return encoder.streamed if "text" in way.apart else encoder.parameters


def _sampling(job: Job, way: Way, held: Mapping[str, int], driver: int) -> dict[str, int]:
    """All parts of the base are there at once while samples are drawn."""
    text = sum(_numbers(one, way) for one in job.measures.text if one not in job.encoders) * job.itemsize
    decode = job.measures.decode
    return {**held, "text encoders": held["text encoders"] + text, "vae": 4 * decode.parameters, "working": 4 * decode.working, "driver": driver}


def _scaled(layer: Layer) -> bool:
    large = layer.linear and min(layer.shape) >= SCALED_FEWEST and not any(side % 16 for side in layer.shape)
    return large and layer.repeated and ".norm" not in layer.name
