"""Pictures from a base, a stack of LoRAs and a prompt; training previews come from here too."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from studio import families
from studio.config import GenerateConfig, Precision
from studio.errors import RunError
from studio.events import Event, Loading, Preview, Sample, Started, Step, Warned
from studio.families.base import Base, Components
from studio.families.devices import resolve_dtype
from studio.generation import conditioning, decoding, modes, orders, prompt, together
from studio.generation import files as picture_files
from studio.generation.denoise import Done, Guide, reporting
from studio.generation.orders import Order, Plan, Requests
from studio.generation.previews import Previews
from studio.generation.running import running
from studio.generation.stack import Rows, Stack, StackReport
from studio.generation.steps import Turns

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture

_WARM = "stack"


def open_base(base: Base, precision: Precision, device: "str | torch.device") -> Components:
    """Load all parts of a base for drawing. Raises BaseError, or RunError if this machine has no such device."""
    import torch

    where = torch.device(device)
    if (where.type == "cuda" and not torch.cuda.is_available()) or (where.type == "mps" and not torch.backends.mps.is_available()):
        raise RunError(f"device {device} cannot be used here; set STUDIO_DEVICE=cpu")
    return families.get(base.family).load(base, ["denoiser", "vae", "text"], resolve_dtype(precision, where), where)


def generate(
    c: Components,
    stack: Rows,
    config: GenerateConfig,
    folder: Path,
    *,
    requests: Requests,
    names: Sequence[str],
    files: Mapping[str, Path] = MappingProxyType({}),
    versions: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[Event]:
    """Draw config.count pictures into `folder`/images, each with the next seed and with its settings inside.

    stack: adapters and their strengths, called `names` in messages and in the pictures. The stack stays on the base for the next call.
    versions: numbers that Civitai knows adapters by, for the pictures.
    files: where the pictures of init_image and mask, and the folder of wildcards, lie. Raises InputError before anything is drawn if
    settings, adapters or pictures do not fit, Cancelled on request between two steps or within one.
    """
    began = time.monotonic()
    going = orders.begin(c, Order(config, stack, folder, requests, names, files, versions))
    plan, config = going.plan, going.plan.config
    applied = stack_on(c)
    if stack:
        yield putting(stack)
    report = applied.set(stack, names, config.stack_mode)
    for message in (*plan.warnings, *report.warnings):
        yield Warned(message=message)
    tiled = decoding.facts(c, [one.size for one in modes.passes(c, config).all])
    previews = Previews(c, folder, config.live_preview)
    with running(c, lambda: applied.layout, config.speed, config.first_block_cache) as runner:
        told = {**facts(c), **stack_facts(report), **tiled, **runner.facts}
        yield Started(total=going.total, settings=config.model_dump(mode="json"), facts=told)
        for group in together.groups(config):
            if going.made and "finish" in requests.pending():
                break
            ones = [going.one(index) for index in group]
            within = going.check if runner.how == "eager" else None  # a replayed graph has no blocks to look between
            drawing = Turns[Done, "list[Picture]"](reporting(c, _steps_of(c, ones, plan, applied.fingerprint(c.facts.text_encoders), applied.at), within))
            yield from _steps(drawing, group.start * plan.steps, going.total, previews, going.check)
            for index, one, picture in zip(group, ones, drawing.result, strict=True):
                yield going.keep(picture, index, one)
        looks = runner.looks
    yield going.finished(began, looks)


def stack_on(c: Components) -> Stack:
    """What puts LoRAs on this base, the same one as long as it stays loaded."""
    return c.warm.get(_WARM) or c.warm.setdefault(_WARM, Stack(c))


def putting(stack: Rows) -> Loading:
    """What is said before LoRAs are put on."""
    return Loading(phase="Putting the LoRAs on" if len(stack) > 1 else "Putting the LoRA on")


def facts(c: Components) -> Mapping[str, Any]:
    """What is told of the base with every drawing."""
    return {"device": str(c.device), "precision": str(c.dtype).removeprefix("torch."), "base": c.base.title or c.base.name}


def stack_facts(report: StackReport) -> dict[str, Any]:
    """And of the stack."""
    return {"stack": f"{report.mode}: {report.reason}"} if any(report.rows) else {}


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
                plan = orders.plan(c, GenerateConfig(base=c.base.name, prompt=spoken, seed=seed + index, steps=steps), (), {})
                [picture] = reporting(c, _steps_of(c, [plan.config], plan, "", lambda _: None), None)(lambda _: None)
                path = f"samples/{step:06}-{index}.png"
                picture_files.save(picture, folder / path, plan.config, [], plan.model)
                yield Sample(step=step, path=path, prompt=text, seed=plan.config.seed)
        finally:
            c.denoiser.train(training)


def _steps_of(
    c: Components, configs: Sequence[GenerateConfig], plan: Plan, text_stack: str, before: Callable[[float], None]
) -> "Callable[[], together.Making]":
    def guided(config: GenerateConfig) -> Guide:
        return conditioning.guide(c, prompt.parse(config.prompt).text, config, text_stack)

    return lambda: together.steps(c, configs, guided, plan.sources, before)
