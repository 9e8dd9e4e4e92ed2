"""Samplers by the names people know, made from the base's own scheduler settings."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from studio.errors import SettingsError
from studio.families.base import Components

if TYPE_CHECKING:
    from torch import Tensor

# key of Facts.samplers -> diffusers class and what differs from the base's own settings
_KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True}),
    "dpmpp_2m_sde_karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "use_karras_sigmas": True}),
    # Latents are not limited to [-1, 1], so nothing may be clipped to it.
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
}


def scheduler(c: Components, sampler: str | None) -> Any:
    """A fresh scheduler; None is the base's own. Raises SettingsError naming the samplers of the family."""
    import diffusers

    own = c.parts["scheduler"]
    if sampler is None:
        return _exact(type(own).from_config(own.config))
    key = c.facts.samplers.get(_known(c, sampler))
    if key is None:
        raise SettingsError(f"sampler {sampler!r} is unknown for {c.facts.title}; known are {', '.join(c.facts.samplers)}")
    kind, changes = _KINDS[key]
    return _exact(getattr(diffusers, kind).from_config(own.config, **changes))


def name(c: Components, sampler: str | None) -> str:
    """The sampler's name as users know it; for the base's own the one of the same class."""
    if sampler is not None:
        return _known(c, sampler)
    own = type(c.parts["scheduler"]).__name__
    return next((title for title, key in c.facts.samplers.items() if _KINDS[key][0] == own), own)


def _exact(scheduler: Any) -> Any:
    """The scheduler, computing its steps in fp32: in half precision even its noise differs from machine to machine."""
    step = scheduler.step

    @functools.wraps(step)  # pipelines look at the signature for what to pass
    def exact(prediction: "Tensor", timestep: Any, sample: "Tensor", **options: Any) -> tuple[Any, ...]:
        found = step(prediction.float(), timestep, sample.float(), **options)
        return (found[0].to(sample.dtype), *found[1:])

    scheduler.step = exact
    return scheduler


def _known(c: Components, sampler: str) -> str:
    """The family's spelling of a name that differs in case only."""
    return next((title for title in c.facts.samplers if title.casefold() == sampler.strip().casefold()), sampler)
