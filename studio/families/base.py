"""What a base-model architecture must declare and do. One file and one registry line make a family."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from studio.families.anatomy import Measures
from studio.families.layout import Section

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import Tensor

Part = Literal["denoiser", "vae", "text", "clip"]  # clip: those of the text encoders that a LoRA is trained for
Passage = tuple[tuple[str, float], ...]  # a part of a prompt: texts with their weights
Conditioning = dict[str, "Tensor"]  # named tensors, batch first; names are the diffusers pipeline's own argument names


@dataclass(frozen=True)
class Base:
    """A base model that was found on this machine: what it is and where its parts lie."""

    name: str
    family: str
    kind: Literal["folder", "file", "hub"]
    path: Path
    title: str = ""
    vae: Path | None = None
    encoders: Path | None = None
    habits: Mapping[str, Any] = field(default_factory=dict)  # studio.json beside the model: overrides Facts.defaults
    builtin: bool = False
    licence: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Facts:
    """Declared data of a family. `defaults` are settings by their names in TrainConfig ("train") and GenerateConfig ("generate")."""

    name: str
    title: str
    default_base: str
    objective: Literal["epsilon", "v", "flow"]
    denoiser: Literal["unet", "transformer"]  # also the pipeline attribute and the diffusers key prefix
    text_encoders: tuple[str, ...]  # pipeline attributes that can carry LoRA layers
    size_multiple: int  # pixels
    native_area: int  # pixels
    lora_targets: Mapping[str, tuple[str, ...]]  # preset name -> regular expressions that fully match module paths inside the denoiser
    modelspec: str  # modelspec.architecture of an adapter
    implementation: str  # modelspec.implementation
    kohya_version: str  # ss_base_model_version
    kohya_module: str  # ss_network_module
    civitai_base: str
    defaults: Mapping[str, Mapping[str, Any]]
    reasons: Mapping[str, str]  # setting -> why this default
    samplers: Mapping[str, str]  # name as users know it -> key of generation.schedulers
    blocks: Mapping[str, str]  # group of blocks a stack may weigh apart -> how module paths inside begin; the first group is the block's number
    one_input: tuple[str, ...] = ()  # module paths inside the denoiser: those that match alike, groups included, see one and the same tensor
    unread: Mapping[str, int] = field(default_factory=dict)  # text encoder -> how many of its last layers nothing reads
    fuses: bool = False  # whether LoRA files keep several of its modules (q, k, v) as one
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # text encoder -> what files call it that bring vectors of new words
    negative_prompts: bool = True  # False where guidance is distilled into the base: nothing is drawn away from


@dataclass
class Components:
    """A loaded base: parts under diffusers' pipeline argument names (unet or transformer, vae, text_encoder, tokenizer, scheduler, ...)."""

    base: Base
    facts: Facts
    parts: dict[str, Any]
    dtype: "torch.dtype"
    device: "torch.device"
    objective: Literal["epsilon", "v", "flow"]
    words: "dict[str, Mapping[str, Tensor]]" = field(default_factory=dict, repr=False, compare=False)  # vectors of new words (n, D), by encoder and word
    warm: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)  # what an engine keeps for as long as the base stays loaded

    @property
    def denoiser(self) -> "torch.nn.Module":
        return self.parts[self.facts.denoiser]


class Family(Protocol):
    facts: Facts

    def recognise_folder(self, folder: Path, index: Mapping[str, Any]) -> dict[str, Any] | None:
        """What its model_index.json and configs say about a diffusers folder of this family, as habits; None if it is of another kind."""
        ...

    def recognise_file(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """The same for one file, from the shapes of its tensors."""
        ...

    def sections(self, names: Collection[str]) -> tuple[Section, ...]:
        """The sections of a single file with these tensors; of the one the studio writes if there are none."""
        ...

    def markers(self, base: Base) -> tuple[str, ...]:
        """Empty tensors by which a single file says of this base what its shapes cannot."""
        ...

    def measures(self, base: Base, height: int, width: int) -> Measures:
        """What the base is made of and what passes through it for one picture of that size in pixels, by its configs alone; without torch."""
        ...

    def load(self, base: Base, parts: Sequence[Part], dtype: "torch.dtype", device: "torch.device") -> Components:
        """Load the named parts, frozen and in eval mode. Raises BaseError in one line if a file is missing or of another kind."""
        ...

    def encode_images(self, c: Components, pixels: "Tensor") -> "Tensor":
        """(B, 3, H, W) in [-1, 1] -> scaled latents (B, C, h, w) in fp32; deterministic (the mode of the posterior)."""
        ...

    def encode_captions(self, c: Components, captions: Sequence[str]) -> Conditioning:
        """Conditioning of a list of captions, batch first, cacheable: as much of it as the loaded encoders give. Differentiable if one is trained."""
        ...

    def encode_prompt(self, c: Components, prompt: Sequence[Passage], tokens: int = 0) -> Conditioning:
        """Conditioning of one prompt with weights, as long as it needs to be; what `encode_captions` gives where it is short and plain.

        tokens: as many at least, so that two prompts can be drawn between in one batch.
        """
        ...

    def decode_latents(self, c: Components, latents: "Tensor") -> "Tensor":
        """Scaled latents (B, C, h, w) -> (B, 3, H, W) in fp32, in [-1, 1] but for what the VAE overshoots."""
        ...

    def predict(self, c: Components, noisy: "Tensor", timesteps: "Tensor", cond: Conditioning, sizes: "Tensor", guidance: float | None = None) -> "Tensor":
        """The denoiser's output, same shape as `noisy` (B, C, h, w).

        timesteps: (B,) floats in [0, 1000). sizes: (B, 6) pixels, original height, width, crop top, left, target height, width;
        families without size conditioning ignore it. guidance: what a base with distilled guidance is told; None is what it trains with.
        """
        ...

    def pipeline(self, c: Components) -> "DiffusionPipeline":
        """The diffusers pipeline over these components, for generation; needs all parts."""
        ...
