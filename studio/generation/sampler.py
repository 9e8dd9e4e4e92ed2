"""Pictures from a base, a stack of LoRAs and a prompt; training previews come from here too."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from studio import families
from studio.config import GenerateConfig, Precision, build, resolve
from studio.errors import Cancelled, RunError, SettingsError
from studio.events import Event, Finished, Image, Loading, Sample, Started, Step, Warned
from studio.families.base import Base, Components
from studio.families.devices import resolve_dtype
from studio.generation import conditioning, infotext, prompt, schedulers
from studio.generation.stack import Rows, Stack, StackReport
from studio.generation.steps import Turns
from studio.generation.strengths import position, row_of

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


def generate(c: Components, stack: Rows, config: GenerateConfig, folder: Path, *, requests: Requests, names: Sequence[str]) -> Iterator[Event]:
    """Draw config.count pictures into `folder`/images, each with the next seed and with its settings inside.

    stack: adapters and their strengths, called `names` in messages and in the pictures. The stack stays on the base for the next call.
    Raises InputError before anything is drawn if settings or adapters do not fit, Cancelled on request between two steps.
    """
    began = time.monotonic()
    plan = _plan(c, config, names)
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
    total = (config.steps or 1) * config.count
    yield Started(total=total, settings=config.model_dump(mode="json"), facts={**_facts(c), **_stack_facts(report)})
    made: list[str] = []
    for index in range(config.count):
        if made and "finish" in requests.pending():
            break
        one = build(GenerateConfig, {**config.model_dump(), "seed": (config.seed + index) % 2**63, "count": 1})
        drawing = Turns[int, "Picture"](_drawing(c, one, plan, applied.fingerprint(c.facts.text_encoders)))
        last = time.monotonic()
        applied.at(0.0)
        for done in drawing:
            now = time.monotonic()
            yield Step(step=index * (config.steps or 1) + done, total=total, seconds=round(now - last, 4))
            last = now
            applied.at(position(done, config.steps or 1))
            if "cancel" in requests.pending():
                raise Cancelled(f"drawing was cancelled; {len(made)} of {config.count} pictures are kept")
        path = f"images/{index:04}-{one.seed}.png"
        infotext.write_png(drawing.result, folder / path, one, used, plan.model)
        made.append(path)
        yield Image(path=path, index=index, seed=one.seed, settings=one.model_dump(mode="json"))
    seconds = time.monotonic() - began
    yield Finished(step=len(made) * (config.steps or 1), seconds=round(seconds, 3), result={"images": made, "finished_early": len(made) < config.count})


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
                plan = _plan(c, GenerateConfig(base=c.base.name, prompt=spoken, seed=seed + index, steps=steps), ())
                picture = _drawing(c, plan.config, plan, "")(lambda _: None)
                path = f"samples/{step:06}-{index}.png"
                infotext.write_png(picture, folder / path, plan.config, [], plan.model)
                yield Sample(step=step, path=path, prompt=text, seed=plan.config.seed)
        finally:
            c.denoiser.train(training)


@dataclass(frozen=True)
class _Plan:
    """What was checked before the first picture."""

    config: GenerateConfig  # every setting with its value
    prompt: str  # without LoRA tags
    model: infotext.Model
    warnings: tuple[str, ...]


def _plan(c: Components, config: GenerateConfig, names: Sequence[str]) -> _Plan:
    config = settle(config, c.base)
    multiple = c.facts.size_multiple
    for side in (config.width or 0, config.height or 0):
        if side % multiple:
            near = max(multiple, round(side / multiple) * multiple)
            raise SettingsError(f"size {config.width}x{config.height}: {c.facts.title} draws multiples of {multiple} pixels; {near} instead of {side} would do")
    schedulers.scheduler(c, config.sampler)
    spoken = prompt.parse(config.prompt)
    known = {prompt.stem(name) for name in names}
    absent = [row.name for row in spoken.loras if prompt.stem(row.name) not in known]
    if absent:
        raise SettingsError(f"prompt: <lora:{absent[0]}> is not in the stack; add the LoRA to it, or take the tag out")
    warnings = []
    if config.negative_prompt and not c.facts.negative_prompts:
        warnings.append(f"{c.base.title or c.base.name} cannot draw away from a prompt (its guidance is distilled); the negative prompt is ignored")
    elif config.negative_prompt and (config.guidance or 0) <= 1:
        warnings.append("the negative prompt has no effect at guidance 1 or less")
    sampler = schedulers.name(c, config.sampler)
    if sampler in c.facts.samplers:
        config = build(GenerateConfig, {**config.model_dump(), "sampler": sampler})
    model = infotext.Model(c.base.name.rpartition("/")[2], distilled=not c.facts.negative_prompts)
    return _Plan(config, spoken.text, model, tuple(warnings))


def _drawing(c: Components, config: GenerateConfig, plan: _Plan, text_stack: str) -> "Callable[[Callable[[int], None]], Picture]":
    """A call that draws one picture and reports the number of every step it has done."""

    def draw(report: Callable[[int], None]) -> "Picture":
        import torch

        with torch.no_grad():
            return _draw(c, config, plan, text_stack, report)

    return draw


def _draw(c: Components, config: GenerateConfig, plan: _Plan, text_stack: str, report: Callable[[int], None]) -> "Picture":
    import torch

    pipeline: Any = families.get(c.facts.name).pipeline(c)
    pipeline.scheduler = schedulers.scheduler(c, config.sampler)
    pipeline.set_progress_bar_config(disable=True)

    def step_done(_: object, index: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        report(index + 1)
        return tensors

    generator = torch.Generator().manual_seed(config.seed)
    output = pipeline(
        **conditioning.arguments(c, plan.prompt, config.negative_prompt, config.guidance or 0.0, text_stack),
        width=config.width,
        height=config.height,
        num_inference_steps=config.steps,
        guidance_scale=config.guidance,
        generator=generator,
        latents=_noise(pipeline, config, generator).to(c.dtype),
        output_type="np",
        callback_on_step_end=step_done,
    )
    return _picture(output.images[0], c)


def _noise(pipeline: Any, config: GenerateConfig, generator: "torch.Generator") -> "torch.Tensor":
    """What the picture starts from, shaped as the pipeline takes it. Drawn on the CPU in fp32: the same on every device and in every format."""
    import torch

    channels, scale = pipeline.vae.config.latent_channels, pipeline.vae_scale_factor
    height, width = (config.height or 0) // scale, (config.width or 0) // scale
    noise = torch.randn(1, channels, height, width, generator=generator)
    pack = getattr(pipeline, "_pack_latents", None)  # transformers take tokens
    return noise if pack is None else pack(noise, 1, channels, height, width)


def _picture(pixels: Any, c: Components) -> "Picture":
    """pixels: (H, W, 3) floats in [0, 1]."""
    import numpy
    from PIL import Image

    if not numpy.isfinite(pixels).all():
        raise RunError(f"the picture came out as no numbers in {c.dtype}; use precision bf16 or fp32, or lower the weights of the LoRAs")
    return Image.fromarray((pixels * 255).round().astype("uint8"))


def _facts(c: Components) -> Mapping[str, Any]:
    return {"device": str(c.device), "precision": str(c.dtype).removeprefix("torch."), "base": c.base.title or c.base.name}


def _stack_facts(report: StackReport) -> dict[str, Any]:
    return {"stack": f"{report.mode}: {report.reason}"} if any(report.rows) else {}
