"""Generate jobs that share one pass of the denoiser: which waiting ones go together, and how the worker draws them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from studio.config import GenerateConfig, build
from studio.config.generating.passes import shared_pass
from studio.errors import SettingsError
from studio.events import Loading
from studio.library import civitai

if TYPE_CHECKING:
    from studio.generation.orders import Order
    from studio.generation.serving import Said
    from studio.jobs.handlers import Work

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """What a job needs of a pass. key: equal for jobs that can share one. n: its pictures; most: how many it lets be drawn at once."""

    key: str
    n: int
    most: int


def place(kind: str, base: str, settings: Mapping[str, Any]) -> Place | None:
    """What a job needs of a pass; None if it is drawn by itself."""
    if kind != "generate" or int(settings.get("batch") or 1) < 2:
        return None
    try:
        config = build(GenerateConfig, settings)
    except SettingsError:  # of another version: it is told when the job itself runs
        return None
    key = shared_pass(config)
    return Place(f"{base} {key}", config.count, config.batch) if key else None


def mates(first: T, others: Sequence[T], of: Callable[[T], Place | None]) -> list[T]:
    """Those of the others that fill the first one's batch, in their order. One batch at most, so nobody between them waits for more than that."""
    own = of(first)
    if own is None:
        return []
    found, n, most = [], own.n, own.most
    for other in others:
        if n >= most:
            break
        its = of(other)
        if its is not None and its.key == own.key and n + its.n <= min(most, its.most):
            found.append(other)
            n, most = n + its.n, min(most, its.most)
    return found


def draw(works: "Sequence[Work]") -> "Iterator[Said]":
    """Draw these jobs in one pass, each by its number. What ends one of them ends it alone."""
    for number in range(len(works)):
        yield number, Loading(phase="starting")
    from studio.generation import sampler, serving

    first, base = works[0], works[0].base
    precision = build(GenerateConfig, first.manifest.settings).precision
    try:
        c = first.warm.components(base, precision, lambda: sampler.open_base(base, precision, first.warm.device))
    except Exception as error:  # without a base, every job ends by it
        yield from ((number, error) for number in range(len(works)))
        return
    orders: dict[int, Order] = {}
    for number, work in enumerate(works):
        try:
            orders[number] = order(work)
        except Exception as error:  # a broken file ends the job that names it
            yield number, error
    numbers = list(orders)
    for i, said in serving.serve(c, list(orders.values())):
        yield numbers[i], said


def order(work: "Work") -> "Order":
    """What a generate job without a grid wants drawn, its adapters read. Raises as reading them does."""
    from studio.generation.orders import Order

    config = build(GenerateConfig, work.manifest.settings)
    stack = list(zip(work.warm.adapters([Path(work.manifest.paths[f"lora:{row.name}"]) for row in config.loras]), config.loras, strict=True))
    return Order(config, stack, work.folder.path, work.requests, [row.name for row in config.loras], files(work), versions(work))


def versions(work: "Work") -> dict[str, int]:
    """The numbers that Civitai knows adapters of the library by, as far as they are known."""
    loras = {key.removeprefix("lora:"): Path(path) for key, path in work.manifest.paths.items() if key.startswith("lora:")}
    return {name: version for name, path in loras.items() if (version := civitai.version_of(path))}


def files(work: "Work") -> dict[str, Path]:
    """Where what a drawing starts from lies, and the wildcards."""
    found = {name: Path(work.manifest.paths[name]) for name in ("init_image", "mask") if name in work.manifest.paths}
    return {**found, "wildcards": work.layout.wildcards}
