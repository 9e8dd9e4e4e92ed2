"""Several orders in one pass of the denoiser: each with its own stack, prompts and seeds, its own progress and its own end.

The LoRAs of all stand beside the layers as one side path with a strength for each picture, so a pass costs little more than the same
number of pictures under one stack. What ends an order ends it alone: a pass that fails is drawn again in halves, down to an order by
itself, which then shows what is wrong with it.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studio.config import GenerateConfig
from studio.errors import SettingsError, StudioError
from studio.events import Event, Preview, Started, Step, Warned
from studio.families.base import Components
from studio.generation import conditioning, decoding, modes, orders, prompt, sampler, together
from studio.generation.denoise import Done, Guide, reporting
from studio.generation.orders import Going, Order
from studio.generation.previews import Previews
from studio.generation.running import running
from studio.generation.stack import Stack, StackReport
from studio.generation.steps import Turns

if TYPE_CHECKING:
    from torch import Tensor

Said = tuple[int, Event | Exception]  # number of an order, and what it says; an exception is the end of that order


@dataclass(frozen=True)
class _Shown:
    """One picture of the pass: which of its order, with which settings."""

    number: int
    index: int
    one: GenerateConfig


def serve(c: Components, wanted: Sequence[Order]) -> Iterator[Said]:
    """Draw these orders at once. Each says what `sampler.generate` says, up to Finished or to the exception that ends it.

    They are to be of one `shared_pass`, and together no more than a batch.
    """
    going: dict[int, Going] = {}
    for number, order in enumerate(wanted):
        try:
            going[number] = orders.begin(c, order)
        except StudioError as error:
            yield number, error
    yield from _served(c, going)


def _served(c: Components, going: dict[int, Going]) -> Iterator[Said]:
    """The same for orders that are checked; `going` is emptied as they end."""
    if len(going) == 1:
        yield from _alone(c, *next(iter(going.items())))
        return
    if not going:
        return
    try:
        yield from _pass(c, going)
        return
    except Exception as error:  # whoever caused it is found below, where it ends that order alone
        why = " ".join(str(error).split())[:200]
        _forget(error)
    for number, own in list(going.items()):
        error = own.ending()
        if error:
            del going[number]
            yield number, error
    for number in going:
        yield number, Warned(message=f"what was drawn at once is drawn in smaller parts ({why})")
    left = list(going.items())
    middle = (len(left) + 1) // 2
    yield from _served(c, dict(left[:middle]))
    yield from _served(c, dict(left[middle:]))


def _alone(c: Components, number: int, own: Going) -> Iterator[Said]:
    order = own.order
    try:
        told = sampler.generate(
            c, order.stack, own.plan.config, order.folder, requests=order.requests, names=order.names, files=order.files, versions=order.versions
        )
        yield from ((number, event) for event in told)
    except Exception as error:  # handed on as the order's end
        yield number, error


def _pass(c: Components, going: dict[int, Going]) -> Iterator[Said]:
    """One pass for all of them; those that end leave `going`. Raises what ends the pass as a whole."""
    began = time.monotonic()
    shown = [_Shown(number, index, own.one(index)) for number, own in going.items() for index in range(own.plan.config.count)]
    config, applied = shown[0].one, sampler.stack_on(c)
    for number, own in going.items():
        if own.order.stack:
            yield number, sampler.putting(own.order.stack)
    of = [going[one.number].order for one in shown]
    report = applied.set_each([order.stack for order in of], [order.names for order in of], config.stack_mode)
    tiled = decoding.facts(c, [one.size for one in modes.passes(c, config).all])
    with running(c, lambda: applied.layout, config.speed, config.first_block_cache) as runner:
        common = {**sampler.facts(c), **tiled, **runner.facts, "at_once": f"{len(shown)} pictures"}
        row = 0
        for number, own in going.items():
            told = tuple(line for line in report.told if any(name in line for name in own.order.names))
            mine = StackReport(report.rows[row : row + len(own.order.stack)], tuple(own.order.names), report.baked, report.live, report.reason, told)
            row += len(own.order.stack) * own.plan.config.count
            for message in (*own.plan.warnings, *mine.warnings):
                yield number, Warned(message=message)
            yield number, Started(total=own.total, settings=own.plan.config.model_dump(mode="json"), facts={**common, **sampler.stack_facts(mine)})
        ones = [one.one for one in shown]
        check = _all_ending(going) if runner.how == "eager" else None
        drawing = Turns[Done, "Tensor"](reporting(c, lambda: together.latents(c, ones, _guide(c, ones, applied), applied.at), check))
        with contextlib.closing(drawing.__iter__()) as steps:
            yield from _steps(c, steps, shown, going)
        if going:
            yield from _kept(c, drawing.result, shown, going, lambda own: own.finished(began, runner.looks))


def _steps(c: Components, steps: Iterator[Done], shown: Sequence[_Shown], going: dict[int, Going]) -> Iterator[Said]:
    """The steps of every order, as they are done; one that is to end leaves while its mates go on."""
    first = {one.number: image for image, one in reversed(list(enumerate(shown)))}
    previews = {number: Previews(c, own.order.folder, own.plan.config.live_preview) for number, own in going.items()}
    last = time.monotonic()
    for done in steps:
        now = time.monotonic()
        for number, own in list(going.items()):
            step = done.steps * own.plan.config.count
            yield number, Step(step=step, total=own.total, seconds=round(now - last, 4))
            error = own.ending()
            if error:
                del going[number]
                yield number, error
                continue
            try:
                path = previews[number].show(lambda done=done, image=first[number]: done.estimate()[image : image + 1])
            except OSError as failed:  # no room on the disk: the end of this order, not of its mates
                del going[number]
                yield number, failed
                continue
            if path:
                yield number, Preview(path=path, step=step)
        last = now
        if not going:
            return


def _kept(c: Components, latents: "Tensor", shown: Sequence[_Shown], going: dict[int, Going], end: Callable[[Going], Event]) -> Iterator[Said]:
    """Every order's pictures, decoded and written, and its last word."""
    import torch

    for number, own in list(going.items()):
        try:
            for image, one in enumerate(shown):
                if one.number == number:
                    own.check()
                    with torch.no_grad():
                        picture = together.decoded(c, latents, image)
                    yield number, own.keep(picture, one.index, one.one)
            last: Event | Exception = end(own)
        except Exception as error:  # handed on as the order's end; its mates' pictures are their own
            last = error
        del going[number]
        yield number, last


def _guide(c: Components, ones: Sequence[GenerateConfig], applied: Stack) -> Guide:
    """What pulls the batch: every prompt as it sounds under the stack of its own picture."""
    guides = []
    for image, one in enumerate(ones):
        applied.speak(image)
        guides.append(conditioning.guide(c, prompt.parse(one.prompt).text, one, applied.fingerprint(c.facts.text_encoders, image)))
    if not together.alike(guides):
        raise SettingsError("prompts of different lengths cannot be drawn at once")
    return together.joined(guides)


def _all_ending(going: dict[int, Going]) -> Callable[[], None]:
    """A check that raises as soon as nobody wants the pass any more."""

    def check() -> None:
        for error in [own.ending() for own in list(going.values())]:
            if error is None:
                return
        raise SettingsError("nobody waits for these pictures")

    return check


def _forget(error: BaseException) -> None:
    """Let go of the tensors that a failed pass still holds, so that the next one finds room."""
    import torch

    error.__traceback__ = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
