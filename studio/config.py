"""Every setting, declared once: command line, forms, HTTP and TOML files are generated from these classes.

A setting left at None takes its value from the base (`studio.json` in its folder), then from its family (`Facts.defaults`);
`resolve` does that, and the resolved values are recorded with the run and the image.
"""

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from studio.errors import SettingsError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Targets = Literal["attention", "attention+mlp", "all-linear", "full+conv"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}$")]


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_strip_whitespace=True)
    ALTERNATIVES: ClassVar[Mapping[str, str]] = {}  # setting -> the one that replaces it, so that no default is filled in


S = TypeVar("S", bound=Settings)


class LoraWeight(Settings):
    """One row of a stack: an adapter by library name or file path, and its strength."""

    name: str = Field(min_length=1, description="Name in the library, or path of a .safetensors file")
    weight: float = Field(default=1.0, ge=-10, le=10, description="Strength; 0 is off, 1 as trained")

    @classmethod
    def parse(cls, text: str) -> Self:
        """NAME or NAME=WEIGHT. A path may hold '='; the last one counts only before a number."""
        name, equals, weight = text.rpartition("=")
        if not equals:
            return cls(name=text)
        try:
            return cls(name=name, weight=float(weight))
        except ValueError:
            return cls(name=text)


def parse_loras(value: Any) -> Any:
    """Rows of a stack, each as NAME, NAME=WEIGHT or an object."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return tuple(LoraWeight.parse(item) if isinstance(item, str) else item for item in value)
    return value


def _lines(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(line.strip() for line in value.splitlines() if line.strip())
    return value


def _words(value: Any) -> Any:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        rows = [item.replace("\n", ",").split(",") if isinstance(item, str) else [item] for item in value]
        return tuple(dict.fromkeys(item.strip() if isinstance(item, str) else item for row in rows for item in row if item))
    return value


class BaseChoice(Settings):
    """Which base model, and the parts that may come from elsewhere."""

    base: str = Field(default="demo-sdxl", min_length=1, description="Base model: a registered name, a diffusers folder, a hub id, or one .safetensors file")
    vae: str | None = Field(default=None, description="Another VAE: a folder or a .safetensors file; empty takes the base's own")
    encoders: str | None = Field(default=None, description="Where text encoders, tokenizers and VAE come from when the base is a transformer-only file")
    precision: Precision = Field(default="auto", description="Number format of the frozen base; auto is bf16 on a GPU that has it, else fp32")


class TrainConfig(BaseChoice):
    ALTERNATIVES: ClassVar[Mapping[str, str]] = {"steps": "epochs"}

    images: str = Field(min_length=1, description="Image set: a name in the studio, or a folder of pictures")
    name: Name = Field(default="my-lora", description="Name of the run and of the exported file; letters, digits, . _ -")
    output: str | None = Field(default=None, description="Also write the finished file here")
    trigger: str = Field(default="", max_length=200, description="Word that calls the LoRA; put in front of captions that lack it")
    steps: int | None = Field(default=None, ge=1, le=1_000_000, description="Optimizer steps; empty takes the base's habit, or follows from epochs")
    epochs: int | None = Field(default=None, ge=1, le=100_000, description="Passes over the pictures, instead of steps")
    repeats: int = Field(default=1, ge=1, le=1000, description="How often each picture counts within one epoch")
    batch_size: int | None = Field(default=None, ge=1, le=512, description="Pictures in one step")
    gradient_accumulation: int = Field(default=1, ge=1, le=256, description="Batches summed up before one optimizer step")
    resolution: int | None = Field(default=None, ge=64, le=4096, description="Side in pixels whose square is the area to train at")
    rank: int | None = Field(default=None, ge=1, le=512, description="LoRA rank; the file grows linearly with it")
    alpha: float | None = Field(default=None, gt=0, le=4096, description="LoRA alpha; the update is scaled by alpha / rank. Empty: equal to rank")
    network: Literal["lora"] = Field(default="lora", description="Kind of adapter")
    targets: Targets = Field(default="attention", description="Which layers get an adapter")
    learning_rate: float | None = Field(default=None, gt=0, le=10, description="Step size of the optimizer")
    optimizer: Literal["adamw"] = Field(default="adamw", description="Optimizer")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="How the learning rate moves after warm-up")
    warmup_steps: int = Field(default=0, ge=0, le=100_000, description="Steps over which the learning rate rises from 0")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="AdamW weight decay")
    max_gradient_norm: float = Field(default=1.0, ge=0, le=1000, description="Gradients are clipped to this norm; 0 is off")
    min_snr_gamma: float | None = Field(default=None, gt=0, le=100, description="Min-SNR loss weight (5 is usual); noise-predicting bases only; empty is off")
    flow_shift: float | None = Field(
        default=None, gt=0, le=100, description="Timestep shift of flow bases; empty follows the base's scheduler and the resolution"
    )
    caption_dropout: float = Field(default=0.0, ge=0, le=1, description="Share of steps that see an empty caption")
    flip: bool = Field(default=False, description="Also train on mirrored pictures; not for faces with a side parting, text or logos")
    gradient_checkpointing: bool | None = Field(default=None, description="Recompute activations to save memory; empty turns it on for full-size bases")
    processes: int = Field(default=1, ge=1, le=64, description="Processes that share every batch, each with a GPU of its own; at most batch_size")
    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(_words)] = Field(
        default=(), max_length=3, description="Also log to these, in the job's folder; by commas: tensorboard, wandb, mlflow"
    )
    start_from: str | None = Field(default=None, description="Start from an existing LoRA: library name, run or file")
    seed: int = Field(default=-1, ge=-1, le=2**63 - 1, description="-1 draws one and records it")
    save_every: int = Field(default=0, ge=0, description="Steps between checkpoints; 0 keeps only the last")
    keep_checkpoints: int = Field(default=2, ge=2, le=10_000, description="Newest checkpoints that can be resumed from; older ones keep their LoRA alone")
    anchor_every: int = Field(default=0, ge=0, description="Checkpoints of every so many steps can be resumed from for good; 0 is off")
    sample_every: int = Field(default=0, ge=0, description="Steps between preview pictures; 0 makes none")
    sample_prompts: Annotated[tuple[str, ...], BeforeValidator(_lines)] = Field(
        default=(), max_length=16, description="Prompts of the preview pictures, one a line; empty takes captions of the set"
    )

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both given: name one of them")
        return self


class GenerateConfig(BaseChoice):
    prompt: str = Field(default="", max_length=20_000, description="What to draw")
    negative_prompt: str = Field(default="", max_length=20_000, description="What to avoid; bases with guided distillation ignore it")
    loras: Annotated[tuple[LoraWeight, ...], BeforeValidator(parse_loras)] = Field(
        default=(), max_length=64, description="The stack: adapters and their weights"
    )
    seed: int = Field(default=-1, ge=-1, le=2**63 - 1, description="-1 draws one and records it")
    steps: int | None = Field(default=None, ge=1, le=500, description="Denoising steps")
    guidance: float | None = Field(default=None, ge=0, le=100, description="How strongly the prompt is followed")
    width: int | None = Field(default=None, ge=64, le=8192, description="Pixels")
    height: int | None = Field(default=None, ge=64, le=8192, description="Pixels")
    count: int = Field(default=1, ge=1, le=1000, description="Pictures, each with the next seed")
    sampler: str | None = Field(default=None, description="Sampler; empty takes the base's own")


def parse_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels, as `--size` takes it."""
    width, _, height = text.lower().partition("x")
    if not (width.strip().isdigit() and height.strip().isdigit()):
        raise SettingsError(f"size {text!r} is not WIDTHxHEIGHT, for example 1024x1024")
    return int(width), int(height)


def build(kind: type[S], values: Mapping[str, Any]) -> S:
    """The settings object, or a SettingsError of one line naming the setting, the rule and the nearest known name."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise SettingsError(_one_line(kind, error)) from None


def _one_line(kind: type[Settings], error: ValidationError) -> str:
    import difflib

    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, kind.model_fields, n=1)
        return f"unknown setting {where!r}" + (f"; did you mean {near[0]!r}?" if near else "; see --help for all of them")
    if first["type"] == "missing":
        return f"setting {where!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # a rule about several settings, which names them itself
        return message
    shown = "" if isinstance(first["input"], dict) else f" {first['input']!r}"
    return f"setting {where}{shown}: {message[0].lower()}{message[1:]}"


def resolve(config: S, *defaults: Mapping[str, Any]) -> S:
    """Fill every setting that is None from the first mapping that has it (base habits before family defaults)."""
    found: dict[str, Any] = {}
    for field in type(config).model_fields:
        if getattr(config, field) is None and getattr(config, config.ALTERNATIVES.get(field, field)) is None:
            value = next((mapping[field] for mapping in defaults if mapping.get(field) is not None), None)
            if value is not None:
                found[field] = value
    return build(type(config), {**config.model_dump(), **found}) if found else config


def safe_stem(name: str) -> str:
    """A file stem that Civitai and A1111 can read in `<lora:stem:1>`: letters, digits, `_ . -`."""
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in PurePath(name).name).strip("-.")
    return stem[:100] or "lora"
