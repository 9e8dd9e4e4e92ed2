"""Which base model."""

from typing import ClassVar

from pydantic import Field

from studio.config.settings import Settings
from studio.config.values import Precision


class BaseChoice(Settings):
    """Which base model, and the parts that may come from elsewhere."""

    TITLE: ClassVar[str] = "Base model"

    base: str = Field(default="demo-sdxl", min_length=1, description="Base model: a registered name, a diffusers folder, a hub id, or one .safetensors file")
    vae: str | None = Field(default=None, description="Another VAE: a folder or a .safetensors file; empty takes the base's own")
    encoders: str | None = Field(default=None, description="Where text encoders, tokenizers and VAE come from when the base is a transformer-only file")
    precision: Precision = Field(default="auto", description="Number format of the frozen base; auto is bf16 on a GPU that has it, else fp32")
