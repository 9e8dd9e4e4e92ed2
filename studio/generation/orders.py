"""An order: what somebody wants drawn, checked before the first step, and its pictures kept with the settings that make them."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from studio import families
from studio.config import GenerateConfig, build, resolve
from studio.errors import Cancelled, Interrupted, SettingsError, StudioError
from studio.events import Finished, Image
from studio.families.base import Base, Components
from studio.generation import files as picture_files
from studio.generation import infotext, modes, pictures, prompt, schedulers, wildcards
from studio.generation.stack import Rows
from studio.generation.strengths import row_of

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SEEDS = 2**32


class Requests(Protocol):
    def pending(self) -> set[str]:
        """What somebody asks for now: of {"cancel", "leave", "finish"}; other words mean nothing here."""
        ...


@dataclass(frozen=True)
class Order:
    """Pictures that are wanted. names: what the rows of the stack are called. files: where init_image, mask and the wildcards lie.

    versions: numbers that Civitai knows adapters by, by their names.
    """

    config: GenerateConfig
    stack: Rows
    folder: Path
    requests: Requests
    names: Sequence[str]
    files: Mapping[str, Path] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What was checked before the first picture."""

    config: GenerateConfig  # every setting with its value
    model: infotext.Model
    sources: modes.Sources
    steps: int  # looks of the denoiser for one picture
    warnings: tuple[str, ...]


@dataclass
class Going:
    """An order at work: its plan, the adapters as its pictures name them, and the pictures that are done."""

    order: Order
    plan: Plan
    used: Sequence[infotext.Used]
    made: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Looks of the denoiser for all its pictures."""
        return self.plan.steps * self.plan.config.count

    def one(self, index: int) -> GenerateConfig:
        """The settings of one picture: the next seed, and what its prompts draw by it."""
        config = self.plan.config
        seed = (config.seed + index) % 2**63
        words = {name: wildcards.resolve(getattr(config, name), seed, self.order.files.get("wildcards")) for name in ("prompt", "negative_prompt")}
        return build(GenerateConfig, {**config.model_dump(), **words, "seed": seed, "count": 1})

    def keep(self, picture: "Picture", index: int, one: GenerateConfig) -> Image:
        """Write the picture with its settings inside."""
        path = f"images/{index:04}-{one.seed}{picture_files.SUFFIXES[one.format]}"
        picture_files.save(picture, self.order.folder / path, one, self.used, self.plan.model)
        self.made.append(path)
        return Image(path=path, index=index, seed=one.seed, settings=one.model_dump(mode="json"))

    def ending(self) -> StudioError | None:
        """Why the order is to end now, if it is."""
        asked = self.order.requests.pending()
        if "cancel" in asked:
            return Cancelled(f"drawing was cancelled; {len(self.made)} of {self.plan.config.count} pictures are kept")
        return Interrupted("the worker was told to end") if "leave" in asked else None

    def check(self) -> None:
        """Raise what `ending` gives, if it gives something."""
        error = self.ending()
        if error:
            raise error

    def finished(self, began: float, more: Mapping[str, Any]) -> Finished:
        """The last word. began: on the monotonic clock. more: what else is told with it."""
        result = {**more, "images": self.made, "finished_early": len(self.made) < self.plan.config.count}
        return Finished(step=len(self.made) * self.plan.steps, seconds=round(time.monotonic() - began, 3), result=result)


def begin(c: Components, order: Order) -> Going:
    """The order, checked. Raises InputError if its settings, adapters' names or pictures do not fit."""
    checked = plan(c, order.config, order.names, order.files)
    used = [
        infotext.Used(name, row_of(strength, name).weight, adapter.metadata.get("sshs_model_hash", ""), order.versions.get(name, 0))
        for name, (adapter, strength) in zip(order.names, order.stack, strict=True)
    ]
    picture_files.check(checked.config, used, checked.model)
    return Going(order, checked, used)


def settle(config: GenerateConfig, base: Base) -> GenerateConfig:
    """Every setting with its value: given, else the base's habit, else the family's default; seed -1 is drawn here."""
    facts = families.get(base.family).facts
    config = resolve(config, base.habits.get("generate", {}), facts.defaults["generate"])
    return config if config.seed >= 0 else build(GenerateConfig, {**config.model_dump(), "seed": secrets.randbelow(SEEDS)})


def plan(c: Components, config: GenerateConfig, names: Sequence[str], files: Mapping[str, Path]) -> Plan:
    """The settings with every value, and what they need, checked."""
    config = settle(config, c.base)
    multiple = c.facts.size_multiple
    for side in (config.width or 0, config.height or 0):
        if side % multiple:
            near = max(multiple, round(side / multiple) * multiple)
            raise SettingsError(f"size {config.width}x{config.height}: {c.facts.title} draws multiples of {multiple} pixels; {near} instead of {side} would do")
    spoken = prompt.parse(config.prompt)
    known = {prompt.stem(name) for name in names}
    absent = [row.name for row in spoken.loras if prompt.stem(row.name) not in known]
    if absent:
        raise SettingsError(f"prompt: <lora:{absent[0]}> is not in the stack; add the LoRA to it, or take the tag out")
    steps = modes.n_steps(c, config)
    sampler = schedulers.name(c, config.sampler)
    if sampler in c.facts.samplers:
        config = build(GenerateConfig, {**config.model_dump(), "sampler": sampler})
    model = infotext.Model(c.base.name.rpartition("/")[2], distilled=not c.facts.negative_prompts)
    return Plan(config, model, _sources(config, files), steps, tuple(_warnings(c, config)))


def _sources(config: GenerateConfig, files: Mapping[str, Path]) -> modes.Sources:
    """The pictures that the drawing starts from. Raises SettingsError for one whose file nobody named."""
    absent = [name for name in ("init_image", "mask") if getattr(config, name) and name not in files]
    if absent:
        raise SettingsError(f"{absent[0]} {getattr(config, absent[0])!r}: there is no such picture here; name a file, or a picture of the gallery")
    size = (config.width or 0, config.height or 0)
    image = pictures.read(files["init_image"], size) if config.init_image else None
    mask = pictures.read_mask(files["mask"], size, config.mask_blur) if config.mask else None
    return modes.Sources(image, mask)


def _warnings(c: Components, config: GenerateConfig) -> Iterator[str]:
    """What will have no effect, in a sentence each."""
    away = (config.guidance or 0) > 1 if c.facts.negative_prompts else (config.true_cfg or 1) > 1
    if config.negative_prompt and not away and c.facts.negative_prompts:
        yield "the negative prompt has no effect at guidance 1 or less"
    elif config.negative_prompt and not away:
        name = c.base.title or c.base.name
        yield f"{name} cannot draw away from a prompt (its guidance is distilled); the negative prompt is ignored unless true_cfg is above 1"
    if config.true_cfg and c.facts.negative_prompts:
        yield "true_cfg is for bases with distilled guidance; here guidance does its work"
    if config.variation_strength and config.init_image and config.strength < 1:
        yield "a variation mixes the noise that is put on init_image; at low strength it shows little"
