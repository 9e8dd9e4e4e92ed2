"""Samplers by the names people know, made from the base's own scheduler settings, and the steps they take."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.errors import SettingsError
from studio.families.base import Components

if TYPE_CHECKING:
    from torch import Generator, Tensor

_KARRAS = {"use_karras_sigmas": True}
_DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
_SINGLE = {**_SDE, "lower_order_final": True, "final_sigmas_type": "zero"}  # its last step is of first order, or it would divide by zero
_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
# Latents are not limited to [-1, 1], so nothing may be clipped to it.
_UNCLIPPED = {"clip_sample": False, "set_alpha_to_one": False}

# key of Facts.samplers -> diffusers class and what differs from the base's own settings
_KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "euler_trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", _DPM),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {**_DPM, **_KARRAS}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", _SDE),
    "dpmpp_2m_sde_karras": ("DPMSolverMultistepScheduler", {**_SDE, **_KARRAS}),
    "dpmpp_sde": ("DPMSolverSinglestepScheduler", _SINGLE),
    "dpmpp_sde_karras": ("DPMSolverSinglestepScheduler", {**_SINGLE, **_KARRAS}),
    "ddim": ("DDIMScheduler", _UNCLIPPED),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", _UNCLIPPED),
    "tcd": ("TCDScheduler", _UNCLIPPED),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow_dpmpp_2m": ("DPMSolverMultistepScheduler", {**_DPM, **_FLOW}),
    "flow_dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {**_SDE, **_FLOW}),
    "flow_unipc": ("UniPCMultistepScheduler", _FLOW),
    "flow_lcm": ("FlowMatchLCMScheduler", {}),
}


@dataclass(frozen=True)
class Schedule:
    """A sampler set to a number of steps, and the part of them that is run.

    timesteps: (n,) one for every look of the denoiser. skipped: looks before them that are left out. A schedule is used once: samplers
    remember their last steps.
    """

    sampler: Any
    timesteps: "Tensor"
    skipped: int

    def __len__(self) -> int:
        return len(self.timesteps)

    def place(self, index: int) -> float:
        """Where look number `index` lies in the whole denoising: 0 is the first, in pure noise, 1 the last."""
        return (self.skipped + index) / max(1, self.skipped + len(self.timesteps) - 1)

    def begin(self, noise: "Tensor", known: "Tensor | None") -> "Tensor":
        """What is denoised first: noise alone, or as much of it as belongs to the first step on what is `known`, (B, C, h, w) in fp32."""
        if not self.skipped or known is None:
            return noise * float(getattr(self.sampler, "init_noise_sigma", 1.0))
        return self.noised(known, noise, 0)

    def noised(self, known: "Tensor", noise: "Tensor", index: int) -> "Tensor":
        """`known` as noisy as the latents are before step `index`; after the last one it is as it was."""
        if index >= len(self.timesteps):
            return known
        at = self.timesteps[index].expand(known.shape[0])
        add = getattr(self.sampler, "add_noise", None)
        return add(known, noise, at) if add else self.sampler.scale_noise(known, at, noise)

    def step(self, prediction: "Tensor", index: int, latents: "Tensor", generators: "Sequence[Generator]") -> "Tensor":
        """The latents after step `index`. All in fp32: in half precision even a sampler's noise differs from machine to machine."""
        drawn = {"generator": list(generators)} if "generator" in inspect.signature(self.sampler.step).parameters else {}
        return self.sampler.step(prediction, self.timesteps[index], latents, **drawn, return_dict=False)[0]


def schedule(c: Components, sampler: str | None, steps: int, size: tuple[int, int], strength: float = 1.0) -> Schedule:
    """A fresh schedule; sampler None is the base's own. size: width and height in pixels, which flow models shift their steps by.

    strength: the share of the steps that is run, the last ones; at least one. Raises SettingsError naming the samplers of the family,
    or a number of steps that the sampler cannot take.
    """
    shift = _shift(c, size)
    found = _sampler(c, sampler, shift)
    try:
        if type(found).__name__.startswith("FlowMatch"):
            _set_flow_steps(found, steps, shift, c)
        else:
            found.set_timesteps(steps, device=c.device)
    except ValueError as error:
        raise SettingsError(f"sampler {name(c, sampler)} cannot take {steps} steps: {str(error).splitlines()[0][:160]}") from None
    skipped = steps - max(1, min(steps, round(steps * strength)))
    first = skipped * found.order
    if hasattr(found, "set_begin_index"):
        found.set_begin_index(first)
    return Schedule(found, found.timesteps[first:], first)


def name(c: Components, sampler: str | None) -> str:
    """The sampler's name as users know it; for the base's own the one of the same class."""
    if sampler is not None:
        return _known(c, sampler)
    own = type(c.parts["scheduler"]).__name__
    return next((title for title, key in c.facts.samplers.items() if _KINDS[key][0] == own), own)


def _sampler(c: Components, sampler: str | None, shift: float) -> Any:
    import diffusers

    own = c.parts["scheduler"]
    if sampler is None:
        return type(own).from_config(own.config)
    key = c.facts.samplers.get(_known(c, sampler))
    if key is None:
        raise SettingsError(f"sampler {sampler!r} is unknown for {c.facts.title}; known are {', '.join(c.facts.samplers)}")
    kind, changes = _KINDS[key]
    shifted = {"flow_shift": shift} if "use_flow_sigmas" in changes else {}
    return getattr(diffusers, kind).from_config(own.config, **changes, **shifted)


def _shift(c: Components, size: tuple[int, int]) -> float:
    """How far a flow model's steps lie towards noise: its fixed shift, or the one for so many image tokens."""
    import math

    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = c.parts["scheduler"].config
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", 1.0))
    tokens = (size[0] // c.facts.size_multiple) * (size[1] // c.facts.size_multiple)
    limits = (config["base_image_seq_len"], config["max_image_seq_len"], config["base_shift"], config["max_shift"])
    return math.exp(calculate_shift(tokens, *limits))


def _set_flow_steps(sampler: Any, steps: int, shift: float, c: Components) -> None:
    """Even steps from noise to picture, shifted."""
    import math

    import numpy
    import torch

    even = numpy.linspace(1.0, 1 / steps, steps)
    if sampler.order == 1:
        sampler.set_timesteps(sigmas=even.tolist(), mu=math.log(shift), device=c.device)
        return
    # diffusers' Heun shifts its own spacing twice; the sigmas are set here as the first-order samplers have them.
    sampler.set_timesteps(steps, device=c.device)
    sigmas = torch.tensor(shift * even / (1 + (shift - 1) * even), dtype=torch.float32, device=c.device)
    twice = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)])
    sampler.timesteps = twice * sampler.config.num_train_timesteps
    sampler.sigmas = torch.cat([twice, sigmas.new_zeros(1)])


def _known(c: Components, sampler: str) -> str:
    """The family's spelling of a name that differs in case only."""
    return next((title for title in c.facts.samplers if title.casefold() == sampler.strip().casefold()), sampler)
