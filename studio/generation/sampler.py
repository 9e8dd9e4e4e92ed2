"""Pictures from a base, a stack of LoRAs and a prompt; training previews come from here too."""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from studio import families
from studio.config import GenerateConfig, Precision, build, resolve
from studio.errors import Cancelled, RunError, SettingsError
from studio.events import Event, Finished, Image, Loading, Preview, Sample, Started, Step, Warned
from studio.families.base import Base, Components
from studio.families.devices import resolve_dtype
from studio.generation import conditioning, decoding, infotext, modes, pictures, prompt, schedulers, together, wildcards
from studio.generation import files as picture_files
from studio.generation.denoise import Done, Guide, interruptible
from studio.generation.previews import Previews
from studio.generation.running import running
from studio.generation.stack import Rows, Stack, StackReport
from studio.generation.steps import Turns
from studio.generation.strengths import row_of

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture

SEEDS = 2**32
_WARM = "stack"


class Requests(Protocol):
    def pending(self) -> set[str]:
        """What somebody asks for now: of {"cancel", "finish"}; other words mean nothing here."""
        ...


def open_base(base: Base, precision: Precision, device: "str | torch.device") -> Components:
    """Load all parts of a base for drawing. Raises BaseError, or RunError if this machine has no such device."""
    import torch

    where = torch.device(device)
    if (where.type == "cuda" and not torch.cuda.is_available()) or (where.type == "mps" and not torch.backends.mps.is_available()):
        raise RunError(f"device {device} cannot be used here; set STUDIO_DEVICE=cpu")
    return families.get(base.family).load(base, ["denoiser", "vae", "text"], resolve_dtype(precision, where), where)


def settle(config: GenerateConfig, base: Base) -> GenerateConfig:
    """Every setting with its value: given, else the base's habit, else the family's default; seed -1 is drawn here."""
    facts = families.get(base.family).facts
    config = resolve(config, base.habits.get("generate", {}), facts.defaults["generate"])
    return config if config.seed >= 0 else build(GenerateConfig, {**config.model_dump(), "seed": secrets.randbelow(SEEDS)})


def generate(
    c: Components,
    stack: Rows,
    config: GenerateConfig,
    folder: Path,
    *,
    requests: Requests,
    names: Sequence[str],
    files: Mapping[str, Path] = MappingProxyType({}),
) -> Iterator[Event]:
    """Draw config.count pictures into `folder`/images, each with the next seed and with its settings inside.

    stack: adapters and their strengths, called `names` in messages and in the pictures. The stack stays on the base for the next call.
    files: where the pictures of init_image and mask, and the folder of wildcards, lie. Raises InputError before anything is drawn if
    settings, adapters or pictures do not fit, Cancelled on request between two steps or within one.
    """
    began = time.monotonic()
    plan = _plan(c, config, names, files)
    config = plan.config
    applied: Stack = c.warm.get(_WARM) or c.warm.setdefault(_WARM, Stack(c))
    if stack:
        yield Loading(phase="Putting the LoRAs on" if len(stack) > 1 else "Putting the LoRA on")
    report = applied.set(stack, names, config.stack_mode)
    for message in (*plan.warnings, *report.warnings):
        yield Warned(message=message)
    used = [
        infotext.Used(name, row_of(strength, name).weight, adapter.metadata.get("sshs_model_hash", ""))
        for name, (adapter, strength) in zip(names, stack, strict=True)
    ]
    picture_files.check(config, used, plan.model)
    total = plan.steps * config.count
    made: list[str] = []
    tiled = decoding.facts(c, [one.size for one in modes.passes(c, config).all])
    previews = Previews(c, folder, config.live_preview)
    with running(c, lambda: applied.layout, config.speed) as runner:
        yield Started(total=total, settings=config.model_dump(mode="json"), facts={**_facts(c), **_stack_facts(report), **tiled, **runner.facts})
        for group in together.groups(config):
            if made and "finish" in requests.pending():
                break
            ones = [_one(config, index, files.get("wildcards")) for index in group]
            check = _asking(requests, Cancelled(f"drawing was cancelled; {len(made)} of {config.count} pictures are kept"))
            within = check if runner.how == "eager" else None  # a replayed graph has no blocks to look between
            drawing = Turns[Done, "list[Picture]"](_drawing(c, _steps_of(c, ones, plan, applied.fingerprint(c.facts.text_encoders), applied.at), within))
            yield from _steps(drawing, group.start * plan.steps, total, previews, check)
            for index, one, picture in zip(group, ones, drawing.result, strict=True):
                path = f"images/{index:04}-{one.seed}{picture_files.SUFFIXES[one.format]}"
                picture_files.save(picture, folder / path, one, used, plan.model)
                made.append(path)
                yield Image(path=path, index=index, seed=one.seed, settings=one.model_dump(mode="json"))
    seconds = time.monotonic() - began
    yield Finished(step=len(made) * plan.steps, seconds=round(seconds, 3), result={"images": made, "finished_early": len(made) < config.count})


def _one(config: GenerateConfig, index: int, wild: Path | None) -> GenerateConfig:
    """The settings of one picture: the next seed, and what its prompts draw by it."""
    seed = (config.seed + index) % 2**63
    words = {name: wildcards.resolve(getattr(config, name), seed, wild) for name in ("prompt", "negative_prompt")}
    return build(GenerateConfig, {**config.model_dump(), **words, "seed": seed, "count": 1})


def _steps(drawing: "Turns[Done, list[Picture]]", before: int, total: int, previews: Previews, check: Callable[[], None]) -> Iterator[Event]:
    """The steps of a group of pictures as they are done, with a preview now and then; `check` raises when nobody wants it any more."""
    last = time.monotonic()
    for done in drawing:
        now = time.monotonic()
        yield Step(step=before + done.steps, total=total, seconds=round(now - last, 4))
        last = now
        check()
        shown = previews.show(done.estimate)
        if shown:
            yield Preview(path=shown, step=before + done.steps)


def _asking(requests: Requests, cancelled: Cancelled) -> Callable[[], None]:
    def check() -> None:
        if "cancel" in requests.pending():
            raise cancelled

    return check


def preview(c: Components, prompts: Sequence[str], step: int, folder: Path, seed: int, steps: int | None = None) -> Iterator[Sample]:
    """Draw each prompt with the components as they stand, a trainable adapter on them included, into `folder`/samples.

    The same seed for the same prompt at every step, so that pictures of different steps compare. Modes and random state of the
    caller are left as they were.
    """
    import torch

    with torch.random.fork_rng([c.device] if c.device.type == "cuda" else []):
        training = c.denoiser.training
        c.denoiser.eval()
        try:
            for index, text in enumerate(prompts):
                spoken = prompt.parse(text).text
                plan = _plan(c, GenerateConfig(base=c.base.name, prompt=spoken, seed=seed + index, steps=steps), (), {})
                [picture] = _drawing(c, _steps_of(c, [plan.config], plan, "", lambda _: None), None)(lambda _: None)
                path = f"samples/{step:06}-{index}.png"
                picture_files.save(picture, folder / path, plan.config, [], plan.model)
                yield Sample(step=step, path=path, prompt=text, seed=plan.config.seed)
        finally:
            c.denoiser.train(training)


@dataclass(frozen=True)
class _Plan:
    """What was checked before the first picture."""

    config: GenerateConfig  # every setting with its value
    model: infotext.Model
    sources: modes.Sources
    steps: int  # looks of the denoiser for one picture
    warnings: tuple[str, ...]


def _plan(c: Components, config: GenerateConfig, names: Sequence[str], files: Mapping[str, Path]) -> _Plan:
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
    return _Plan(config, model, _sources(config, files), steps, tuple(_warnings(c, config)))


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


def _steps_of(
    c: Components, configs: Sequence[GenerateConfig], plan: _Plan, text_stack: str, before: Callable[[float], None]
) -> "Callable[[], together.Making]":
    def guided(config: GenerateConfig) -> Guide:
        return conditioning.guide(c, prompt.parse(config.prompt).text, config, text_stack)

    return lambda: together.steps(c, configs, guided, plan.sources, before)


def _drawing(c: Components, begin: "Callable[[], together.Making]", check: Callable[[], None] | None) -> "Callable[[Callable[[Done], None]], list[Picture]]":
    """A call that draws a group of pictures and reports every step it has done. `check`, if any, is called within steps too, and may raise."""

    def draw(report: Callable[[Done], None]) -> "list[Picture]":
        import torch

        with torch.no_grad(), interruptible(c, check) if check else contextlib.nullcontext():
            steps = begin()
            while True:
                try:
                    report(next(steps))
                except StopIteration as ended:
                    return ended.value

    return draw


def _facts(c: Components) -> Mapping[str, Any]:
    return {"device": str(c.device), "precision": str(c.dtype).removeprefix("torch."), "base": c.base.title or c.base.name}


def _stack_facts(report: StackReport) -> dict[str, Any]:
    return {"stack": f"{report.mode}: {report.reason}"} if any(report.rows) else {}
