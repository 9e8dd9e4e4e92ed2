"""Which modules are trained, at which rank, strength and rate: settled from the settings before any layer is made."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.config.training.network import Network
from studio.config.values import numbered
from studio.errors import FormatError, SettingsError
from studio.families.base import Components
from studio.lora.attach.modules import prefix
from studio.lora.formats import names

if TYPE_CHECKING:
    from torch import nn

_ATTENTION = r".*\.self_attn\.(?:q|k|v|out)_proj"
_CLIP = {"attention": _ATTENTION, **dict.fromkeys(("attention+mlp", "all-linear", "full+conv"), rf"{_ATTENTION}|.*\.mlp\.fc[12]")}


@dataclass(frozen=True)
class Place:
    """A module that gets a layer. path: canonical; rate: share of the run's learning rate that its layer moves at."""

    path: str
    part: str
    name: str  # inside the part
    module: "nn.Module"
    rank: int
    alpha: float
    rate: float = 1.0


def choose(c: Components, network: Network, text_rate: float = 0.0) -> list[Place]:
    """The modules in the order of the model. text_rate: of the CLIP encoders, which are left alone at 0.

    Raises SettingsError if a preset is unknown or a pattern matches nothing, FormatError if the base lacks what a preset names.
    """
    rows = {name: _compiled(name, getattr(network, name)) for name in ("block_ranks", "block_alphas", "block_rates")}
    rank, alpha = network.rank or 0, network.alpha or network.rank or 0
    used: set[tuple[str, str]] = set()

    def own(setting: str, path: str, otherwise: float) -> float:
        for pattern, value in rows[setting].items():
            if pattern.search(path):
                used.add((setting, pattern.pattern))
                return value
        return otherwise

    found = []
    for part, rate in _parts(c, text_rate):
        before = prefix(part, c.parts[part])
        for name, module in _wanted(c, part, network):
            path = before + name
            here = int(own("block_ranks", path, rank))
            # alpha follows the rank, so that a block's rank alone leaves its strength as it is
            strength = own("block_alphas", path, alpha * here / rank)
            found.append(Place(path, part, name, module, here, strength, rate * own("block_rates", path, 1.0)))
    if not found:
        raise _nothing(c, network)
    unused = [(setting, pattern.pattern) for setting, table in rows.items() for pattern in table if (setting, pattern.pattern) not in used]
    if unused:
        setting, pattern = unused[0]
        raise SettingsError(f"{setting}: the pattern {pattern!r} matches none of the {len(found)} trained modules, such as {found[0].path}")
    nameless = [place.path for place in found if not _has_a_name(c, place)]
    if nameless:
        raise SettingsError(f"{len(nameless)} modules, first {nameless[0]}, have no name in LoRA files of {c.facts.title}; narrow target_pattern")
    return found


def _parts(c: Components, text_rate: float) -> list[tuple[str, float]]:
    clips = [name for name in c.facts.text_encoders if type(c.parts.get(name)).__name__.startswith("CLIPText")] if text_rate else []
    return [(c.facts.denoiser, 1.0), *((name, text_rate) for name in clips)]


def _wanted(c: Components, part: str, network: Network) -> "list[tuple[str, nn.Module]]":
    model: Any = c.parts[part]
    before = prefix(part, model)
    if network.target_pattern:
        pattern = compiled("target_pattern", network.target_pattern)
        matches: Callable[[str], object] = lambda name: pattern.search(before + name)  # noqa: E731
    elif part == c.facts.denoiser:
        presets = c.facts.lora_targets.get(network.targets)
        if presets is None:
            raise SettingsError(f"targets {network.targets!r} is unknown for {c.facts.title}; known are {', '.join(c.facts.lora_targets)}")
        matches = re.compile("|".join(f"(?:{preset})" for preset in presets)).fullmatch
    else:
        matches = re.compile(_CLIP[network.targets]).fullmatch
    found = [(name, module) for name, module in model.named_modules() if _is_target(module) and matches(name)]
    last = re.compile("|".join(rf"(?:^|.*\.)layers\.{model.config.num_hidden_layers - 1 - i}\..*" for i in range(c.facts.unread.get(part, 0))) or "(?!)")
    return [(name, module) for name, module in found if not last.fullmatch(name)]


def _is_target(module: "nn.Module") -> bool:
    """Whether it is a linear layer or a convolution, in any number format."""
    from torch import nn

    return isinstance(module, nn.Linear | nn.Conv2d)


def compiled(setting: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"setting {setting} {pattern!r}: is no regular expression ({error})") from None


def _compiled(setting: str, rows: tuple[str, ...]) -> Mapping[re.Pattern[str], float]:
    return {compiled(setting, pattern): value for pattern, value in numbered(rows).items()}


def _nothing(c: Components, network: Network) -> Exception:
    if not network.target_pattern:
        return FormatError(f"{c.base.name}: none of its layers is named by targets {network.targets!r}; is this a {c.facts.title} base?")
    before = prefix(c.facts.denoiser, c.denoiser)
    example = next(before + name for name, module in c.denoiser.named_modules() if _is_target(module))
    return SettingsError(f"target_pattern {network.target_pattern!r} matches no linear or convolution layer of {c.base.name}; they are called like {example}")


def _has_a_name(c: Components, place: Place) -> bool:
    found = names.target(place.path)
    return found is not None and found.family in ("", c.facts.name)
