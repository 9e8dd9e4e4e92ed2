"""Adapter tools as jobs: merge, resize, extract, bake, check. Names become files, and what can be known to fail is refused here."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from studio.config import BaseChoice, LoraWeight, Settings, build, safe_stem
from studio.errors import BaseError, FormatError, InputError, NotFound
from studio.families import FAMILIES
from studio.families.base import Base
from studio.jobs.aside import Aside
from studio.jobs.folder import Manifest
from studio.jobs.handlers import base_values
from studio.jobs.spec import TOOLS, BakeConfig, CheckConfig, ExtractConfig, MergeConfig, ProbeConfig, ResizeConfig
from studio.library import adapters
from studio.library.ids import new_id
from studio.workspace.bases import Bases
from studio.workspace.library import Library, fits
from studio.workspace.live import LIVE
from studio.workspace.plans import Source, writable
from studio.workspace.records import JobRecord

KEPT = 64  # comparisons that are remembered


class Tools:
    """Use cases around adapter files. Without an `output`, an adapter joins the library under its `name`."""

    def __init__(self, bases: Bases, library: Library, source: Callable[[str], Source], submit: Callable[[Manifest], JobRecord]) -> None:
        self._bases = bases
        self._library = library
        self._run_or_file = source
        self._submit = submit
        self.probe: Callable[[ProbeConfig], JobRecord] | None = None  # needs runs and image sets too
        self._aside = Aside()
        self._compared: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def close(self) -> None:
        """End what was started beside the queue."""
        self._aside.close()

    def merge(self, config: MergeConfig) -> JobRecord:
        """The weighted sum of adapters as one."""
        found = self._stack(config.loras)
        first, family = config.loras[0].name, _family(found[0])
        for row, source in zip(config.loras, found, strict=True):
            if _family(source) != family:
                kinds = [FAMILIES[name].facts.title if name in FAMILIES else "an unknown model" for name in (family, _family(source))]
                raise FormatError(f"{first} is a LoRA for {kinds[0]}, {row.name} for {kinds[1]}; only LoRAs for the same kind of base can be merged")
        return self._hand_in("merge", config, "-".join(source.name for source in found)[:80], found)

    def resize(self, config: ResizeConfig) -> JobRecord:
        """An adapter with smaller ranks."""
        found = self._source(config.source)
        _family(found)
        word = f"r{config.rank}" if config.rank else f"e{config.energy:g}"
        return self._hand_in("resize", config, f"{found.name}-{word}", [found], paths={"source": str(found.path)})

    def extract(self, config: ExtractConfig) -> JobRecord:
        """What a tuned model has more than its base."""
        tuned, base = (self._bases.resolve(BaseChoice(base=name)) for name in (config.tuned, config.base))
        if tuned.family != base.family:
            kinds = [FAMILIES[one.family].facts.title for one in (tuned, base)]
            raise BaseError(f"{tuned.name} is {kinds[0]}, {base.name} is {kinds[1]}; name a base of the same family")
        if tuned.path == base.path:
            raise InputError(f"tuned and base are both {base.name}; name the model that was tuned, and what it was tuned from")
        return self._hand_in("extract", config, f"{tuned.name}-extracted", [], base=base, paths={"tuned": str(tuned.path)})

    def bake(self, config: BakeConfig) -> JobRecord:
        """A base with adapters in it, as a checkpoint or a folder."""
        base = self._bases.resolve(BaseChoice(base=config.base, vae=config.vae))
        found = self._stack(config.loras)
        for source in found:
            fits(source.path, _family(source), base.family)
        output = _place(config.output, base)
        return self._hand_in("bake", config, safe_stem(output.stem), found, base=base, output=str(output))

    def check(self, config: CheckConfig) -> JobRecord:
        """What the rows of a stack do to each other, and how each fits the base if one is named."""
        found, base = self._together(config)
        return self._hand_in("check", config, "-".join(source.name for source in found)[:80], found, base=base)

    def compare(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The same at once, beside the queue: a training that runs does not keep it waiting. Of a run that goes on, its last checkpoint counts."""
        config = build(CheckConfig, values)
        found, base = self._together(config)
        files = [source.path for source in found]
        stamps = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
        key = repr((config, stamps, str(base.path) if base else ""))
        if key not in self._compared:
            self._compared[key] = self._aside.compare(config, files, base)
            while len(self._compared) > KEPT:
                self._compared.popitem(last=False)
        return self._compared[key]

    def _together(self, config: CheckConfig) -> tuple[list[Source], Base | None]:
        """The adapters of a stack, and the base that they are held against. Raises FormatError if they cannot be in one picture."""
        found = [self._source(row.name.removesuffix(LIVE)) for row in config.loras]
        families = {_family(source) for source in found}
        if len(families) > 1:
            raise FormatError("these LoRAs are for different kinds of base, so no picture has them together; check those for one base")
        base = self._bases.resolve(BaseChoice(base=config.base)) if config.base else None
        if base:
            for source in found:
                fits(source.path, _family(source), base.family)
        return found, base

    def run(self, kind: str, values: Mapping[str, Any]) -> JobRecord:
        """The tool of that name with settings as plain values. Raises SettingsError for wrong ones."""
        if kind not in TOOLS:
            raise NotFound(f"no tool {kind!r}; there are {', '.join(TOOLS)}")
        return getattr(self, kind)(build(TOOLS[kind], values))

    def _stack(self, loras: tuple[LoraWeight, ...]) -> list[Source]:
        if not any(row.weight for row in loras):
            raise InputError("every weight is 0; name a LoRA with another weight")
        return [self._source(row.name) for row in loras]

    def _source(self, ref: str) -> Source:
        """A library entry or file, else a run or RUN@STEP."""
        try:
            path, id = self._library.locate(ref)
        except NotFound:
            return self._run_or_file(ref)
        return Source(path, path.stem, adapter=id)

    def _hand_in(
        self,
        kind: str,
        config: Settings,
        name: str,
        found: list[Source],
        *,
        base: Base | None = None,
        paths: Mapping[str, str] | None = None,
        output: str = "",
    ) -> JobRecord:
        values = config.model_dump()
        if output or values.get("output"):
            values["output"] = output or str(writable(Path(values["output"])))
            taken = [source.path for source in found if source.path.resolve() == Path(values["output"]).resolve()]
            if taken:
                raise InputError(f"output {values['output']} is a file that is read; name another one")
        manifest = Manifest(
            id=new_id(),
            kind=kind,
            name=safe_stem(values.get("name") or name),
            config=config.model_dump(),
            settings=values,
            base=base_values(base) if base else {},
            paths={**{f"lora:{i}": str(source.path) for i, source in enumerate(found)}, **(paths or {})},
            uses=sorted({use for source in found for use in source.uses}),
        )
        return self._submit(manifest)


def _family(source: Source) -> str:
    """The family of an adapter file. Raises FormatError if it is no LoRA."""
    return adapters.describe(source.path)["family"]


def _place(output: str, base: Base) -> Path:
    """Where a checkpoint goes: a file, or a folder that is new."""
    path = Path(output).expanduser().absolute()
    if path.suffix == ".safetensors":
        writable(path)
        if path.resolve() == base.path:
            raise InputError(f"output {path} is the base itself; name another file")
        return path
    if not base.path.is_dir():
        raise InputError(f"output {path.name}: {base.name} is one file, so the output is one too; end its name in .safetensors")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"output {path} exists; name a new folder")
    writable(path.with_name("folder.safetensors"))
    return path
