"""Put a trainable adapter on a loaded base, read it off again, take it away."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from studio.config.training.network import Network
from studio.errors import FormatError
from studio.families.base import Components
from studio.lora.adapter import Adapter, Layer, LowRank
from studio.lora.attach import lowrank, origin
from studio.lora.attach.adaptive import Allocator
from studio.lora.attach.choice import Place, choose
from studio.lora.attach.dropout import Chance, KeyedDropout
from studio.lora.attach.frozen import fingerprint
from studio.lora.attach.kinds import KINDS
from studio.lora.attach.modules import module_map, parameter_map
from studio.lora.attach.newwords import Vectors, begin
from studio.lora.attach.weights import NAME

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NAME", "Allocator", "Attached", "attach", "begin", "collect", "detach", "fingerprint", "load", "module_map", "parameter_map", "restore"]
UP = ".lora_B."  # what LoRA+ trains faster


@dataclass
class Attached:
    """A trainable adapter on a base, as the training loop sees it. `places` and `modules` are parallel."""

    components: Components
    network: Network
    places: list[Place]
    modules: list[Any]  # PEFT's layers
    chance: Chance
    allocator: Allocator | None = None
    words: Vectors | None = None  # of new words, trained too

    @property
    def paths(self) -> list[str]:
        return sorted(place.path for place in self.places)

    @property
    def plain(self) -> bool:
        """Whether every layer is base(x) + scale * up(down(x)) and every step does the same work, so that it may be regrouped or captured."""
        network = self.network
        return network.network == "lora" and network.init not in origin.INITS and network.dropout == 0 and not self.reads_live

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by, in the layers of the run's own rank: alpha / rank, or alpha / sqrt(rank)."""
        rank, alpha = self.network.rank or 1, self.network.alpha or self.network.rank or 1
        return alpha / math.sqrt(rank) if self.network.rank_stabilized else alpha / rank

    def trainable(self) -> "dict[str, nn.Parameter]":
        """Name -> parameter; the encoders' names begin with their part and a colon."""
        return {name: parameter for _, name, parameter in self._parameters()} | {name: parameter for name, _, parameter in self._vectors()}

    def rates(self) -> dict[str, float]:
        """Name of a parameter -> its share of the run's learning rate."""
        faster = self.network.lora_plus_ratio
        words = {name: self.words.rate for name, _, _ in self._vectors()} if self.words else {}
        return {name: place.rate * (faster if UP in name else 1.0) for place, name, _ in self._parameters()} | words

    @cached_property
    def layer_of(self) -> dict[str, str]:
        """Name of a parameter -> path of its layer; of a new word's, its name in a file."""
        return {name: place.path for place, name, _ in self._parameters()} | {name: path for name, path, _ in self._vectors()}

    def _parameters(self) -> "Iterator[tuple[Place, str, nn.Parameter]]":
        for place, module in zip(self.places, self.modules, strict=True):
            before = place.name if place.part == self.components.facts.denoiser else f"{place.part}:{place.name}"
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    yield place, f"{before}.{name}", parameter

    def _vectors(self) -> "Iterator[tuple[str, str, nn.Parameter]]":
        yield from self.words.parameters() if self.words else ()

    @property
    def reads_live(self) -> bool:
        """Whether what encodes captions is trained."""
        return self.words is not None or bool(self.encoders)

    @property
    def encoders(self) -> list[str]:
        """The text encoders with layers in training."""
        return [part for part in dict.fromkeys(place.part for place in self.places) if part != self.components.facts.denoiser]

    def leave_encoders(self) -> None:
        """Leave the layers of the text encoders as they are from now on; they get no gradient any more."""
        for place, module in zip(self.places, self.modules, strict=True):
            if place.part in self.encoders:
                module.requires_grad_(False)


def attach(c: Components, network: Network, *, text_rate: float = 0.0, fresh: bool = True) -> Attached:
    """Give the base trainable layers in fp32, all else stays frozen. The update is zero at first.

    text_rate: of the loaded CLIP encoders, as a share of the run's; 0 leaves them alone. fresh: False where `restore` follows.
    Raises SettingsError or FormatError if the settings do not fit the base.
    """
    if network.network == "none":
        return Attached(c, network, [], [], Chance(c.denoiser))
    places = choose(c, network, text_rate)
    kind = KINDS[network.network]
    attached = Attached(c, network, places, [], Chance(c.denoiser))
    for part in dict.fromkeys(place.part for place in places):
        inside = [place for place in places if place.part == part]
        attached.modules += _injected(c.parts[part], network, inside)
    for number, (place, module) in enumerate(zip(places, attached.modules, strict=True)):
        kind.settle(module, place)
        if network.dropout:
            module.lora_dropout[NAME] = KeyedDropout(network.dropout, attached.chance, number)
        for name, parameter in module.named_parameters():
            trained = NAME in name.split(".") and "ranknum" not in name
            parameter.requires_grad_(trained)
            if trained:
                parameter.data = parameter.data.float()
    if network.init in origin.INITS:
        for module in attached.modules:
            _origin(module, c)
            if fresh:
                origin.begin(module, network.init, c.device)
    return attached


def load(attached: Attached, adapter: Adapter) -> None:
    """Copy an adapter's weights into the attached layers: the same deltas, bit-equal weights where kind, rank and alpha agree.

    A smaller rank is padded with zeros. Raises FormatError if a layer has no place here, is of another kind, or has too large a rank.
    """
    import torch

    c = attached.components
    if adapter.family != c.facts.name:
        raise FormatError(f"the LoRA is for {adapter.family}, the base {c.base.name} is {c.facts.title}; choose a base of its family")
    unknown = sorted(path for path in set(adapter.layers) - set(attached.paths) if not lowrank.is_untrained(adapter.layers[path]))
    if unknown:
        raise FormatError(f"{len(unknown)} of the LoRA's {len(adapter.layers)} layers are not trained here (first: {unknown[0]}); choose wider targets")
    with torch.no_grad():
        for place, module in zip(attached.places, attached.modules, strict=True):
            KINDS[attached.network.network].fill(module, adapter.layers.get(place.path), place.path)
    if attached.words:
        attached.words.load(adapter)
    elif adapter.embeddings:
        raise FormatError(f"the LoRA brings the new word {next(iter(adapter.embeddings))!r}, which is not trained here; name it in new_words")


def restore(attached: Attached, adapter: Adapter) -> None:
    """Put back exactly what `collect` took from the same settings."""
    if attached.network.init in origin.INITS:
        halves: dict[str, LowRank] = {}
        for place, module in zip(attached.places, attached.modules, strict=True):
            layer = adapter.layers[place.path]
            assert isinstance(layer, LowRank)
            halves[place.path] = origin.restore(module, layer)
        adapter = replace(adapter, layers=halves)
    load(attached, adapter)


def collect(attached: Attached) -> Adapter:
    """The attached adapter as it stands now: a copy on the CPU in fp32, for the base as it is."""
    found: dict[str, Layer] = {}
    for place, module in sorted(zip(attached.places, attached.modules, strict=True), key=lambda pair: pair[0].path):
        layer = KINDS[attached.network.network].collect(module)
        if attached.network.init in origin.INITS:
            assert isinstance(layer, LowRank)
            layer = origin.collect(module, layer)
        found[place.path] = layer
    if attached.network.network == "dora":
        found |= lowrank.untrained_partners(module_map(attached.components), found)
    return Adapter(attached.components.facts.name, found, embeddings=attached.words.collect() if attached.words else {})


def detach(c: Components) -> None:
    """Take the adapter away: the base's own modules are back in their places, untouched."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for part in (c.facts.denoiser, *c.facts.text_encoders):
        model = c.parts.get(part)
        if model is None:
            continue
        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.get_base_layer())
        if hasattr(model, "peft_config"):
            del model.peft_config


def _injected(model: Any, network: Network, places: list[Place]) -> list[Any]:
    """PEFT's layers around the modules of one part, in their order."""
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    pattern = "|".join(place.name.replace(".", r"\.") for place in places)
    inject_adapter_in_model(KINDS[network.network].config(network, places, pattern), model, adapter_name=NAME)
    if network.init in origin.INITS:
        beside = KINDS["lora"].config(network.model_copy(update={"init": "default", "dropout": 0.0}), places, pattern)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # there are to be two of them
            inject_adapter_in_model(beside, model, adapter_name=origin.ORIGIN)
    found = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    if found != {place.name for place in places}:
        raise FormatError(f"{len(found)} of {len(places)} layers took a {network.network}; choose other targets")
    return [model.get_submodule(place.name) for place in places]


def _origin(module: Any, c: Components) -> None:
    """Both adapters at once, the second in the number format of the base."""
    module.set_adapter([NAME, origin.ORIGIN])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(NAME in name.split("."))
        if origin.ORIGIN in name.split("."):
            parameter.data = parameter.data.to(c.dtype)
