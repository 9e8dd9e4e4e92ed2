"""Settings of jobs that have no page of their own."""

from typing import Literal

from pydantic import Field

from studio.config import Settings

Format = Literal["kohya", "peft"]
Dtype = Literal["fp16", "bf16", "fp32"]


class ExportConfig(Settings):
    """A verified file for others, from a run, a checkpoint of it (RUN@STEP), a library adapter or a file."""

    source: str = Field(min_length=1, description="Run, RUN@STEP, name in the library, or file")
    output: str | None = Field(default=None, description="File to write; empty puts it into the library")
    format: Format = Field(default="kohya", description="kohya for web UIs and sharing sites, peft for diffusers")
    dtype: Dtype = Field(default="fp16", description="Number format in the file")
