"""Settings of jobs that have no page of their own."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from studio.config import LoraWeight, Name, Settings, Targets, parse_loras, plain_loras

Format = Literal["kohya", "peft"]
Dtype = Literal["fp16", "bf16", "fp32"]


class ExportConfig(Settings):
    """A verified file for others, from a run, a checkpoint of it (RUN@STEP), a library adapter or a file."""

    source: str = Field(min_length=1, description="Run, RUN@STEP, name in the library, or file")
    output: str | None = Field(default=None, description="File to write; empty puts it into the library")
    format: Format = Field(default="kohya", description="kohya for web UIs and sharing sites, peft for diffusers")
    dtype: Dtype = Field(default="fp16", description="Number format in the file")
    thumbnail: bool = Field(default=True, description="Keep a small preview picture in the header")
    tags: Literal["auto", "always", "never"] = Field(default="auto", description="Count the words of the captions in the header; auto only if they are tags")
    side_files: bool = Field(
        default=False, description="Write a preview picture, a card for web UIs, a text for Civitai and the vectors of new words beside the file"
    )


class CaptionConfig(Settings):
    """Captions for an image set by a model that looks at the pictures."""

    images: str = Field(min_length=1, description="Image set of the studio, by name or id")
    model: str = Field(min_length=1, max_length=500, description="Image-to-text model: a folder or a hub id; BLIP, BLIP-2, GIT, Florence-2, Qwen-VL and others")
    prompt: str = Field(default="", max_length=2000, description="Words a caption begins with, or what a model that chats is asked; empty takes the usual one")
    replace: bool = Field(default=False, description="Write captions anew where there are some; otherwise those are kept")
    max_tokens: int = Field(default=75, ge=1, le=1024, description="Longest caption, in the model's tokens")


class AdapterOutput(Settings):
    """Where the adapter that a tool makes goes, and how it is written."""

    output: str | None = Field(default=None, description="File to write; empty puts it into the library")
    name: Name | None = Field(default=None, description="Name in the library and in the file; empty makes one")
    format: Format = Field(default="kohya", description="kohya for web UIs and sharing sites, peft for diffusers")
    dtype: Dtype = Field(default="fp16", description="Number format in the file")


class MergeConfig(AdapterOutput):
    """The weighted sum of LoRAs as one LoRA."""

    loras: Annotated[tuple[LoraWeight, ...], BeforeValidator(parse_loras), AfterValidator(plain_loras)] = Field(
        min_length=1, max_length=64, description="LoRAs and their weights"
    )
    method: Literal["concat", "svd"] = Field(default="concat", description="concat is exact and adds up the ranks; svd is the best sum of the rank named")
    rank: int | None = Field(default=None, ge=1, le=4096, description="Rank of every layer; with method svd")

    @model_validator(mode="after")
    def _rank_with_svd(self) -> Self:
        if self.method == "svd" and self.rank is None:
            raise ValueError("method svd needs a rank")
        if self.method == "concat" and self.rank is not None:
            raise ValueError("method concat adds up the ranks; for a rank of your own take method svd")
        return self


class ResizeConfig(AdapterOutput):
    """A LoRA with smaller ranks."""

    source: str = Field(min_length=1, description="Name in the library, run, or file")
    rank: int | None = Field(default=None, ge=1, le=4096, description="Largest rank of a layer")
    energy: float | None = Field(default=None, gt=0, le=1, description="Share of every layer's squared norm to keep, for example 0.99; ranks follow from it")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.rank is None) == (self.energy is None):
            raise ValueError("name a rank or an energy, one of them")
        return self


class ExtractConfig(AdapterOutput):
    """A LoRA from what a tuned model has more than its base."""

    tuned: str = Field(min_length=1, description="Tuned model: a registered name, a diffusers folder or a .safetensors file")
    base: str = Field(min_length=1, description="The base it was tuned from")
    rank: int | None = Field(default=None, ge=1, le=4096, description="Largest rank of a layer; empty is 32, or no limit with an energy")
    energy: float | None = Field(default=None, gt=0, le=1, description="Share of every layer's squared norm to keep; ranks follow from it")
    targets: Targets = Field(default="full+conv", description="Which layers may be carried")
    text_encoders: bool = Field(default=True, description="Carry text encoder layers too")


class BakeConfig(Settings):
    """A base with LoRAs baked in, as a model of its own."""

    base: str = Field(min_length=1, description="Base model: a registered name, a diffusers folder, a hub id, or one .safetensors file")
    vae: str | None = Field(default=None, description="Another VAE: a folder or a .safetensors file; empty takes the base's own")
    loras: Annotated[tuple[LoraWeight, ...], BeforeValidator(parse_loras), AfterValidator(plain_loras)] = Field(
        min_length=1, max_length=64, description="LoRAs and their weights"
    )
    output: str = Field(min_length=1, description="A .safetensors file, or a folder for diffusers")
    dtype: Literal["stored", "fp16", "bf16", "fp32"] = Field(default="stored", description="Number format; stored keeps that of the base (8 bits become fp16)")


class EvaluateConfig(Settings):
    """The held-out loss of every checkpoint of a run."""

    run: str = Field(min_length=1, description="Training run, by name or id")
    images: str | None = Field(default=None, description="Image set to measure by; empty takes the pictures that the run held out")


class ProbeConfig(AdapterOutput):
    """A smaller LoRA that predicts held-out pictures as well."""

    source: str = Field(min_length=1, description="Run, RUN@STEP, name in the library, or file")
    images: str | None = Field(default=None, description="Image set to measure by, which it was not trained on; empty takes the pictures that the run held out")
    base: str | None = Field(default=None, min_length=1, description="Base model of a LoRA that is no run of the studio; empty takes what the library knows")
    tolerance: float = Field(default=0.01, ge=0, le=1, description="What the smaller one may lose at most, as a share of the loss that the LoRA saves")


class CheckConfig(Settings):
    """What the LoRAs of a stack do to each other and, with a base named, how each fits it."""

    loras: Annotated[tuple[LoraWeight, ...], BeforeValidator(parse_loras)] = Field(
        min_length=1, max_length=64, description="The stack: LoRAs and their weights"
    )
    base: str | None = Field(default=None, min_length=1, description="Base model that they are to fit: a registered name, a diffusers folder or a file")


TOOLS: Mapping[str, type[Settings]] = {
    "merge": MergeConfig,
    "resize": ResizeConfig,
    "probe": ProbeConfig,
    "extract": ExtractConfig,
    "bake": BakeConfig,
    "check": CheckConfig,
}
