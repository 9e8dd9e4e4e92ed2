"""Optimizers and learning-rate schedules by name; an optimizer's memory as named tensors."""

import difflib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from studio.config import TrainConfig
from studio.config.training.optimization import check_installed
from studio.errors import SettingsError

Groups = Sequence[Tensor] | Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """Where an optimizer comes from, and what is set unless `optimizer_options` says otherwise."""

    package: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


OPTIMIZERS: Mapping[str, Kind] = {
    "adamw": Kind("torch.optim", "AdamW"),
    "adamw8bit": Kind("bitsandbytes.optim", "AdamW8bit"),
    # The rate comes from our schedule, and there is no momentum: that is what saves the memory.
    "adafactor": Kind("pytorch_optimizer", "AdaFactor", {"betas": (None, 0.999), "scale_parameter": False, "relative_step": False}),
    "lion": Kind("pytorch_optimizer", "Lion"),
    # Without these two the first steps of a warmed-up run make the estimate of the rate too large (its authors' advice for diffusion models).
    "prodigy": Kind("pytorch_optimizer", "Prodigy", {"bias_correction": True, "safeguard_warmup": True}),
    "schedule-free": Kind("pytorch_optimizer", "ScheduleFreeAdamW"),
    "came": Kind("pytorch_optimizer", "CAME"),
}
RESERVED = frozenset({"self", "params", "lr", "weight_decay", "fused", "capturable", "differentiable", "maximize", "args", "optim_bits", "is_paged"})

# share of the learning rate after warm-up, at progress in [0, 1)
SCHEDULES: Mapping[str, Callable[[float, TrainConfig], float]] = {
    "constant": lambda progress, config: 1.0,
    "linear": lambda progress, config: 1.0 - progress,
    "cosine": lambda progress, config: 0.5 * (1 + math.cos(math.pi * progress)),
    "cosine-restarts": lambda progress, config: 0.5 * (1 + math.cos(math.pi * (progress * config.lr_cycles % 1.0))),
    "polynomial": lambda progress, config: (1.0 - progress) ** config.lr_power,
}


def check(config: TrainConfig) -> None:
    """Raise SettingsError if the optimizer is not installed or does not know an option."""
    check_installed(config.optimizer)
    _options(config)


def optimizer(params: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the settings over parameters, or over groups of them. Raises SettingsError for a value it refuses."""
    kind, options = OPTIMIZERS[config.optimizer], _options(config)
    if config.optimizer == "adamw":
        first = params[0] if isinstance(params[0], Tensor) else params[0]["params"][0]
        options["fused"] = first.device.type in ("cpu", "cuda", "mps")
    try:
        return _class(kind)(params, lr=config.learning_rate or 0.0, weight_decay=config.weight_decay, **options)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"optimizer_options {' '.join(config.optimizer_options)!r}: {config.optimizer} refuses them ({error})") from error


def groups(params: Sequence[Tensor], shares: Sequence[float]) -> list[dict[str, Any]]:
    """Parameter groups by their share of the learning rate; equal ones must stand together."""
    found: list[dict[str, Any]] = []
    for tensor, share in zip(params, shares, strict=True):
        if not found or found[-1]["share"] != share:
            found.append({"params": [], "share": share})
        found[-1]["params"].append(tensor)
    return found


def set_rate(opt: torch.optim.Optimizer, learning_rate: float) -> None:
    """Let every group move at its share of the learning rate."""
    for group in opt.param_groups:
        group["lr"] = learning_rate * group.get("share", 1.0)


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """The rate of step 1, 2, ... total: linear warm-up from above 0, then the schedule, which ends above 0 at the last step."""
    peak, warmup = config.learning_rate or 0.0, config.warmup_steps
    if step <= warmup:
        return peak * step / warmup
    return peak * SCHEDULES[config.lr_schedule]((step - 1 - warmup) / max(1, total - warmup), config)


def averages(opt: torch.optim.Optimizer) -> bool:
    """Whether it trains at one point and gives another, the average of its way: a schedule-free one."""
    return all("train_mode" in group for group in opt.param_groups)


@contextmanager
def given(opt: torch.optim.Optimizer) -> Iterator[None]:
    """Within, the parameters are those to look at and to keep; afterwards they are bit for bit where training stood."""
    if not averages(opt):
        yield
        return
    stood = [(p, p.detach().clone()) for p in _parameters(opt)]
    opt.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in stood:
                p.copy_(value)
        for group in opt.param_groups:
            group["train_mode"] = True  # train() would compute the way back, which is not exact


def state_tensors(opt: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The optimizer's memory: `name/key` of each parameter, `@N/key` of group N; `names` in the order of its parameters.

    Numbers become 0-d tensors that keep their kind: fp64, int64 or bool. What a schedule-free optimizer trains at is `name/@point`.
    """
    found: dict[str, Tensor] = {}
    for name, p in zip(names, _parameters(opt), strict=True):
        for key, value in opt.state[p].items() if p in opt.state else ():
            found[f"{name}/{key}"] = _stored(value)
        if averages(opt):
            found[f"{name}/@point"] = p.detach()
    for number, group in enumerate(opt.param_groups):
        moved = {key: value for key, value in group.items() if key not in ("params", "lr", "share") and _differs(value, opt.defaults.get(key))}
        found |= {f"@{number}/{key}": _stored(value) for key, value in moved.items()}
    return _apart(found)


def load_state_tensors(opt: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Give back what `state_tensors` took, in the very number formats. The learning rate is not part of it: it follows from the step."""
    parameters = dict(zip(names, _parameters(opt), strict=True))
    groups = {id(p): group for group in opt.param_groups for p in group["params"]}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition("/")
        if name.startswith("@"):
            group = opt.param_groups[int(name[1:])]
            group[key] = _read(tensor, group["params"][0].device)
            continue
        p = parameters[name]
        if key == "@point":
            with torch.no_grad():
                p.copy_(tensor)
            continue
        group = groups[id(p)]
        counts = key == "step" and not (group.get("fused") or group.get("capturable"))  # torch keeps the count on the CPU unless told otherwise
        opt.state[p][key] = _read(tensor, torch.device("cpu") if counts else p.device)


def _parameters(opt: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in opt.param_groups for p in group["params"]]


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor with memory of its own, as a file of them asks: the tables of 8-bit optimizers are shared by all parameters."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return tensors


def _differs(value: Any, default: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    return isinstance(value, bool | int | float) and (type(value) is not type(default) or value != default)


def _stored(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else torch.float64)


def _read(tensor: Tensor, device: torch.device) -> Any:
    if tensor.dim() == 0 and tensor.dtype in (torch.bool, torch.int64, torch.float64):
        return tensor.item()
    return tensor.to(device, copy=True)


def _class(kind: Kind) -> Any:
    return getattr(import_module(kind.package), kind.name)


def _options(config: TrainConfig) -> dict[str, Any]:
    """The options as the optimizer takes them. Raises SettingsError for one that it does not know."""
    kind = OPTIMIZERS[config.optimizer]
    taken = {name for name, p in inspect.signature(_class(kind)).parameters.items() if p.kind is not p.VAR_KEYWORD} - RESERVED
    options = dict(kind.options)
    for pair in config.optimizer_options:
        key, _, text = pair.partition("=")
        if key not in taken:
            near = difflib.get_close_matches(key, taken, n=1)
            way_out = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(sorted(taken))}"
            raise SettingsError(f"optimizer_options {pair!r}: {config.optimizer} has no such option; {way_out}")
        options[key] = _value(text)
    return options


def _value(text: str) -> Any:
    """A number, on/off, none, or several by commas. Raises SettingsError."""
    if "," in text:
        return tuple(_value(part) for part in text.split(",") if part)
    words = {"true": True, "on": True, "false": False, "off": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise SettingsError(f"optimizer_options: {text!r} is no number, on, off or none") from None
