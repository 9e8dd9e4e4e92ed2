"""What is trained: kind, size and places of the adapter."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from studio.config.settings import Settings
from studio.config.values import numbered, rows

Kind = Literal["lora", "dora", "loha", "lokr", "adalora", "none"]
Targets = Literal["attention", "attention+mlp", "all-linear", "full+conv"]
Rows = Annotated[tuple[str, ...], BeforeValidator(rows)]

# setting -> the kinds of network that it means something for; the first of them is named as the way out
FOR: Mapping[str, tuple[Kind, ...]] = {
    "rank_stabilized": ("lora", "dora"),
    "lora_plus_ratio": ("lora", "dora"),
    "dropout": ("lora", "dora", "adalora"),
    "final_rank": ("adalora",),
    "block_ranks": ("lora", "dora", "loha", "lokr"),  # AdaLoRA shares ranks out itself
}
INITS: Mapping[str, tuple[Kind, ...]] = {"gaussian": ("lora", "dora"), "pissa": ("lora",), "olora": ("lora",)}


class Network(Settings):
    TITLE: ClassVar[str] = "Network"

    network: Kind = Field(
        default="lora", description="Kind of adapter; lora loads everywhere, for the others see Networks in the help; none trains new words alone"
    )
    targets: Targets = Field(default="attention", description="Which layers get an adapter")
    target_pattern: str | None = Field(
        default=None, max_length=1000, description="Train the layers whose path matches this regular expression, for example attn2|ff, instead of targets"
    )
    rank: int | None = Field(default=None, ge=1, le=512, description="LoRA rank; the file grows linearly with it")
    alpha: float | None = Field(default=None, gt=0, le=4096, description="LoRA alpha; the update is scaled by alpha / rank. Empty: equal to rank")
    final_rank: float | None = Field(
        default=None, gt=0, le=512, description="AdaLoRA: ranks a layer that are left in the end, on the mean. Empty: a quarter of rank"
    )
    rank_stabilized: bool = Field(default=False, description="Scale by alpha / sqrt(rank) (rsLoRA), so that a large rank learns as fast as a small one")
    lora_plus_ratio: float = Field(default=1.0, ge=1, le=64, description="LoRA+: the up matrices learn this many times faster (16 is usual); 1 is off")
    init: Literal["default", "gaussian", "pissa", "olora"] = Field(
        default="default", description="What the matrices start from; pissa and olora start from the base's own directions and save twice the rank"
    )
    dropout: float = Field(default=0.0, ge=0, le=0.9, description="Share of the adapter's inputs that a step leaves out, against learning by heart")
    block_ranks: Rows = Field(default=(), max_length=64, description="Rank of some layers, one PATTERN=RANK a line; the first that matches counts")
    block_alphas: Rows = Field(default=(), max_length=64, description="Alpha of some layers, PATTERN=ALPHA; without one, alpha keeps its share of the rank")
    block_rates: Rows = Field(default=(), max_length=64, description="Learning rate of some layers, PATTERN=FACTOR of the run's")
    text_encoder_learning_rate: float | None = Field(
        default=None, gt=0, le=10, description="Also train the CLIP text encoders, at this rate; captions are then encoded anew in every step. Empty is off"
    )
    text_encoder_stop: int | None = Field(default=None, ge=1, le=1_000_000, description="Step after which the text encoders stay as they are; empty is never")
    start_from: str | None = Field(default=None, description="Start from an existing LoRA: library name, run or file")

    @model_validator(mode="after")
    def _network_agrees(self) -> Self:
        defaults = type(self).model_fields
        for name, kinds in FOR.items():
            if getattr(self, name) != defaults[name].default and self.network not in kinds:
                raise ValueError(f"{name} is for {' and '.join(kinds)}, not for {self.network}: leave it out, or set network to {kinds[0]}")
        kinds = INITS.get(self.init)
        if kinds and self.network not in kinds:
            raise ValueError(f"init {self.init} is for {' and '.join(kinds)}, not for {self.network}: use init default")
        if self.network == "none" and self.text_encoder_learning_rate:
            raise ValueError("network none trains new words alone: leave text_encoder_learning_rate out, or set network to lora")
        if self.network == "adalora" and self.text_encoder_learning_rate:
            raise ValueError("adalora shares out ranks within the denoiser only: leave text_encoder_learning_rate out, or set network to lora")
        if self.final_rank and self.rank and self.final_rank >= self.rank:
            raise ValueError(f"final_rank {self.final_rank:g} takes nothing away from rank {self.rank}: lower it, or set network to lora")
        if self.text_encoder_stop and not self.text_encoder_learning_rate:
            raise ValueError("text_encoder_stop means nothing without text_encoder_learning_rate: give both, or leave it out")
        wrong = [value for value in numbered(self.block_ranks).values() if value != int(value) or value > 512]
        if wrong:
            raise ValueError(f"block_ranks: {wrong[0]:g} is no rank; a rank is a whole number from 1 to 512")
        return self
