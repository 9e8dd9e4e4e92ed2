"""The rank probe as a job: a LoRA, the base that it is for, and pictures that it was not trained on."""

from pathlib import Path

from studio.config import BaseChoice, safe_stem
from studio.errors import InputError
from studio.jobs.folder import JobFolder, Manifest
from studio.jobs.handlers import base_values
from studio.jobs.probing import SUFFIX
from studio.jobs.spec import ProbeConfig
from studio.library import adapters
from studio.library.ids import new_id
from studio.library.layout import Layout
from studio.workspace.bases import Bases
from studio.workspace.jobs import Jobs
from studio.workspace.library import Library, fits
from studio.workspace.plans import Source, writable
from studio.workspace.records import JobRecord
from studio.workspace.sets import Sets


class Probes:
    """Runs know their base and what they held out; of other LoRAs both are named."""

    def __init__(self, layout: Layout, jobs: Jobs, sets: Sets, bases: Bases, library: Library) -> None:
        self._layout = layout
        self._jobs = jobs
        self._sets = sets
        self._bases = bases
        self._library = library

    def run(self, config: ProbeConfig) -> JobRecord:
        """Put the probe into the queue. Raises InputError if there is nothing to measure by."""
        source = self._jobs.source(config.source)
        values, uses = config.model_dump(), source.uses
        paths = {"source": str(source.path), "run": source.run}
        if source.run:
            trained = JobFolder.of(self._layout.jobs, source.run).manifest()
            base = trained.base
            if not config.images and not trained.settings.get("validation_fraction"):
                raise InputError(f"run {trained.name!r} trained on all its pictures; name an image set that it has not seen, with --images")
            paths["images"], paths["step"] = trained.paths["images"], str(source.step)
            uses += [use for use in trained.uses if use.startswith("set:")]
        else:
            base = self._base(config, source)
            if not config.images:
                raise InputError(f"nobody knows what {source.name} was trained on; name an image set that it has not seen, with --images")
        if config.images:
            images = self._sets.resolve(config.images)
            paths["others"] = str(images.folder)
            uses += [f"set:{images.id}"] if images.id else []
        if config.output:
            values["output"] = str(writable(Path(config.output)))
            if Path(values["output"]).resolve() == source.path.resolve():
                raise InputError(f"output {values['output']} is the file that is read; name another one")
        name = safe_stem(config.name or f"{source.name}{SUFFIX}")
        return self._jobs.submit(Manifest(id=new_id(), kind="probe", name=name, config=config.model_dump(), settings=values, base=base, paths=paths, uses=uses))

    def _base(self, config: ProbeConfig, source: Source) -> dict[str, object]:
        """The base that is named, or that the library knows the file by."""
        told = adapters.describe(source.path)
        known = self._library.show(source.adapter).base if source.adapter else ""
        name = config.base or known
        if not name:
            raise InputError(f"nobody knows which base {source.name} is for; name it with --base")
        base = self._bases.resolve(BaseChoice(base=name))
        fits(source.path, told["family"], base.family)
        return base_values(base)
