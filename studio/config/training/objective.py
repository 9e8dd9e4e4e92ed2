"""What counts as a good prediction: noise, levels, weights and the shape of the loss."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from studio.config.settings import Settings
from studio.errors import SettingsError

Sampling = Literal["logit-normal", "uniform", "mode"]


class Objective(Settings):
    TITLE: ClassVar[str] = "Objective"

    loss: Literal["mse", "huber"] = Field(default="mse", description="mse is what bases are trained with; huber minds single bad pictures and pixels less")
    huber_c: float = Field(default=0.1, gt=0, le=10, description="Error from which huber goes from square to straight; the least one under a schedule")
    huber_schedule: Literal["constant", "exponential", "snr"] = Field(
        default="snr", description="Where huber is strict: exponential and snr come close to mse at the details and are mild where noise rules"
    )
    min_snr_gamma: float | None = Field(default=None, gt=0, le=100, description="Min-SNR loss weight (5 is usual); noise-predicting bases only; empty is off")
    debiased: bool = Field(default=False, description="Debiased loss weight, which minds noisy levels more; noise-predicting bases only; instead of min-SNR")
    noise_offset: float = Field(
        default=0.0, ge=0, le=1, description="Share of noise that shifts whole channels (0.0357 is usual), for darker darks; noise-predicting bases; 0 is off"
    )
    pyramid_noise: int = Field(
        default=0, ge=0, le=10, description="Layers of coarse noise added to the noise (6 is usual), for contrast; noise-predicting bases; 0 is off"
    )
    pyramid_discount: float = Field(default=0.3, gt=0, lt=1, description="How much weaker each coarser layer of pyramid noise is")
    input_perturbation: float = Field(default=0.0, ge=0, le=1, description="Share of extra noise that the model is not told of (0.1 is usual); 0 is off")
    zero_terminal_snr: bool = Field(default=False, description="Train as if the last level were pure noise; bases that predict velocity only")
    timestep_sampling: Sampling | None = Field(
        default=None, description="Which noise levels flow bases train at: logit-normal (also called sigmoid) has the middle most, mode more of the ends"
    )
    timestep_mean: float = Field(default=0.0, ge=-5, le=5, description="Middle of logit-normal; above 0 is noisier")
    timestep_scale: float = Field(default=1.0, gt=0, le=10, description="Width of logit-normal, the sigmoid scale of other trainers")
    mode_scale: float = Field(default=1.29, ge=-1, le=1.75, description="Strength of mode; 0 is uniform")
    flow_shift: float | None = Field(
        default=None, gt=0, le=100, description="Timestep shift of flow bases; empty follows the base's scheduler and the resolution"
    )

    preference_beta: float | None = Field(
        default=None, gt=0, le=100_000, description="Learn from pairs which picture is better (Diffusion-DPO), this strictly; 2000 is usual; empty is off"
    )

    @model_validator(mode="after")
    def _preference_alone(self) -> Self:
        fields = Objective.model_fields
        moved = [name for name in NOT_FOR_PAIRS if getattr(self, name) != fields[name].get_default()]
        if self.preference_beta is not None and moved:
            raise ValueError(f"{moved[0]} means nothing to preference_beta, which compares plain errors; leave one of them out")
        return self

    @model_validator(mode="after")
    def _one_weight(self) -> Self:
        if self.debiased and self.min_snr_gamma is not None:
            raise ValueError("debiased and min_snr_gamma are two loss weights: name one of them")
        return self


NOT_FOR_PAIRS = ("loss", "min_snr_gamma", "debiased", "input_perturbation")
NOISE_ONLY = ("min_snr_gamma", "debiased", "noise_offset", "pyramid_noise", "pyramid_discount", "zero_terminal_snr")
FLOW_ONLY = ("flow_shift", "timestep_sampling", "timestep_mean", "timestep_scale", "mode_scale")


def check_objective(kind: str, chosen: Objective) -> None:
    """Raise SettingsError for a setting that means nothing to a base which predicts `kind`: epsilon, v or flow."""
    fields = Objective.model_fields
    moved = [name for name in (NOISE_ONLY if kind == "flow" else FLOW_ONLY) if getattr(chosen, name) != fields[name].get_default()]
    if moved:
        shown = f"{moved[0]} {getattr(chosen, moved[0])}"
        told = ("noise-predicting bases, this is a flow base", "flow bases, this one predicts noise")[kind != "flow"]
        raise SettingsError(f"{shown} is for {told}; leave {moved[0]} {'off' if fields[moved[0]].annotation is bool else 'as it comes'}")
    if chosen.zero_terminal_snr and kind == "epsilon":
        raise SettingsError("zero_terminal_snr: noise cannot be learned from pure noise, which is all the last level holds; take a base that predicts velocity")
