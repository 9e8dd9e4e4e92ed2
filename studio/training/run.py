"""A run in memory: loading, one step after another, saving, letting go."""

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from studio.data import buckets
from studio.data.cache import Cache, Want, release
from studio.errors import RunError
from studio.events import Checkpoint, Validation
from studio.families.base import Components, Family
from studio.footprint.choice import Choice
from studio.killpoints import reached
from studio.lora import attach
from studio.training import budget, carried, checkpoint, newwords, objective, optim, placing
from studio.training import team as teams
from studio.training.average import Average
from studio.training.carried import Carried, Memory
from studio.training.drawing import drawn
from studio.training.draws import Draw
from studio.training.fast import Fast, prepare
from studio.training.graph import Engine
from studio.training.lean import recompute
from studio.training.placing import Placed
from studio.training.plan import Plan
from studio.training.ranks import Ranks
from studio.training.speed import Speed, choose
from studio.training.step import Micro, Outcome, Stepper
from studio.training.taken import Ahead, Known, Taken
from studio.training.validation import Watch, evaluating, measure

MAX_SKIPPED = 10  # steps in a row whose loss is not finite


@dataclass
class Run:
    """A run in memory: what `train` moves forward."""

    plan: Plan
    family: Family
    store: Cache
    folder: Path
    origin: Mapping[str, Any]
    memory: Choice
    step: int = 0
    skipped: int = 0
    in_a_row: int = 0
    saved: checkpoint.Stored | None = None
    placed: Placed = field(init=False)
    components: Components = field(init=False)
    attached: attach.Attached = field(init=False)
    fingerprint: int = 0  # of the frozen base, which nothing may change
    stepper: Stepper = field(init=False)
    average: Average | None = None
    watch: Watch | None = None  # over held-out pictures
    carried: dict[str, Carried] = field(default_factory=dict)  # by the names of their files
    checked: bool = False
    micro: int = 0  # pictures at once since memory ran out; 0 is a whole batch
    notes: list[str] = field(default_factory=list)
    speed: Speed = field(init=False)
    fast: Fast | None = None
    engine: Engine | None = None  # takes the steps instead of the stepper where they can be recorded
    recomputed: float = 0.0  # share of the blocks whose activations are made again
    pace: budget.Pace = field(default_factory=budget.Pace)
    ahead: deque[Ahead] = field(default_factory=deque)  # steps that were taken and whose figures nobody has read yet
    launched: float = 0.0

    def begin(self, resumed: Path | None) -> None:
        """Load the denoiser, attach the adapter, and put both where they stood or where `start_from` says."""
        config, store = self.plan.config, self.store
        checkpoint.sweep(self.folder / "checkpoints")
        budget.begin(store.device)
        self.placed = placing.load(self.family, store, config)
        self.components = c = self.placed.components
        reached("load")
        with torch.random.fork_rng([store.device] if store.device.type == "cuda" else []):
            torch.manual_seed(config.seed)
            text_rate = (config.text_encoder_learning_rate or 0.0) / (config.learning_rate or 1.0)
            self.attached = attach.attach(c, config, text_rate=text_rate, fresh=resumed is None)
            if config.new_words:
                self.attached.words = attach.begin(c, config, newwords.rate(config))
        if resumed:
            attach.restore(self.attached, checkpoint.adapter(resumed))
        elif config.start_from:
            attach.load(self.attached, _read_lora(Path(config.start_from), c))
        self.placed.settle()
        for part in (c.facts.denoiser, *self.attached.encoders):
            c.parts[part].train()
        self.speed = choose(self.attached, config, steps=self.plan.steps, shapes=len({one.crop.bucket for one in self.plan.shown}))
        self._recompute(self.memory.way.recomputed)
        self.fast = prepare(self.attached, self.speed, fp8=config.fp8_products)
        self.placed.wait(self.memory.way.buffers)
        goal = objective.choose(c.objective, c.parts["scheduler"].config, c.denoiser.config, config)  # type: ignore[arg-type]
        self.stepper = stepper = Stepper(self.attached, self.family, goal, config, self.fast.fused if self.fast else None)
        self.carried["optimizer"] = Memory(stepper.optimizer, stepper.weights.names)
        if config.ema_decay:
            self.carried["ema"] = self.average = Average(stepper.weights, config.ema_decay)
        if config.network == "adalora":
            self.attached.allocator = attach.Allocator.of(config, self.plan.steps, stepper.weights.named())
            self.carried["ranks"] = Ranks(stepper.weights, self.attached.allocator)
        self.fingerprint = attach.fingerprint(c)
        if self.plan.held:
            self.carried["validation"] = self.watch = Watch()
        if resumed:
            self._restore(resumed)
        spares = config.gradient_checkpointing is None  # a recorded step that does not fit after all finds out what it needs
        self.engine = Engine(stepper, spared=self.recomputed if spares else 1.0, ring=self.placed.ring) if self.fast else None

    def _restore(self, resumed: Path) -> None:
        state = checkpoint.state(resumed)
        carried.restore(self.carried, resumed)
        self.stepper.weights.publish()
        self.step, self.skipped, self.in_a_row = state.step, state.skipped, state.in_a_row
        self.checked = True  # in its first life; its next step may well be one to skip
        self.stepper.loss_scale, self.stepper.scaled_steps, self.micro = state.loss_scale, state.scaled_steps, state.micro
        if self.watch and state.settings["steps"] != self.plan.steps:
            self.watch.stale = 0  # whoever extends a run wants it to go on
        if resumed.parent == self.folder / "checkpoints":
            self.saved = checkpoint.check(resumed)  # it stands: nothing is gained by writing it anew

    def advance(self) -> None:
        """Take one optimizer step; `taken` tells of it, here or once its figures have come from the device."""
        began = time.monotonic()
        config, accumulation = self.plan.config, self.plan.config.gradient_accumulation
        numbers = range(self.step * accumulation, (self.step + 1) * accumulation)
        pictures = sum(len(self.plan.order.batch(number)) for number in numbers)
        self.notes.clear()
        if config.text_encoder_stop and self.step >= config.text_encoder_stop:
            self.attached.leave_encoders()
        if self.attached.words and config.word_stop and self.step >= config.word_stop:
            self.attached.words.leave()
        while (loss := self._accumulated(numbers, pictures)) is None:
            self._lessen()
        loss = teams.current().sum(loss, self.stepper.weights.exact)
        if not self.checked and not self.plan.only_prior(numbers):
            still = self.stepper.check_gradients()
            if still:
                self.notes.append(f"{still} of {len(self.attached.places)} layers got a gradient of zero in the first step and did not move")
            self.checked = True
        if self.engine:
            self.notes += self.engine.told()
        rate = optim.learning_rate(self.step + 1, self.plan.steps, config)
        late = self.engine.update(rate) if self.engine else Known(self.stepper.update(loss, rate))
        if self.average and late.outcome().applied:
            self.average.update()
        reached("update")
        self.step += 1
        now = time.monotonic()
        self.ahead.append(Ahead(self.step, late, rate, now - (self.launched if self.engine and self.launched else began)))
        self.launched = now

    def taken(self, *, everything: bool) -> Iterator[Taken]:
        """Steps whose figures are known, in order; with `everything` all that were taken, else the newest may still run on the device.

        Raises RunError after too many that are not finite.
        """
        while len(self.ahead) > (1 if self.engine and not everything else 0):
            one = self.ahead.popleft()
            yield Taken(one.step, self._counted(one.step, one.late.outcome()), one.rate, one.seconds)

    def _counted(self, step: int, outcome: Outcome) -> Outcome:
        self.in_a_row = 0 if outcome.applied else self.in_a_row + 1
        self.skipped += not outcome.applied
        if self.in_a_row == MAX_SKIPPED:
            kept = f"the checkpoint of step {self.saved.step} is kept" if self.saved else "no checkpoint was made yet"
            way_out = "lower the learning rate or use precision bf16"
            raise RunError(f"the loss was not finite {MAX_SKIPPED} steps in a row, up to step {step}; {kept}: {way_out}")
        return outcome

    def _accumulated(self, numbers: range, pictures: int) -> torch.Tensor | None:
        """The step's mean loss, its gradients summed up; None if memory ran out on the way where fewer pictures at once may do."""
        try:
            taker = self.engine or self.stepper
            return taker.accumulate((micro for number in numbers for micro in self._micros(number)), pictures)
        except torch.OutOfMemoryError:
            if not self._spares and (self.step == 0 or self._at_once() == 1):
                raise
        return None

    def _at_once(self) -> int:
        return self.micro or self.plan.config.batch_size or 1

    def _recompute(self, share: float) -> None:
        if share:
            recompute(self.components.denoiser, share)
        self.recomputed = share

    @property
    def _spares(self) -> bool:
        """Whether activations may be recomputed that are kept so far; recorded steps see to it themselves."""
        return self.engine is None and self.recomputed < 1 and self.plan.config.gradient_checkpointing is None

    def _lessen(self) -> None:
        """Recompute activations, or else take fewer pictures at once; the step is done anew with the same draws: its gradient stays the same sum."""
        if self.engine:
            self.engine.forget()
        self.stepper.weights.clear()
        release(self.store.device)
        if self._spares:
            self._recompute(1.0)
            self.notes.append(f"step {self.step + 1}: memory ran out; activations are recomputed from here on, which takes longer and changes no result")
            return
        self.micro = self._at_once() // 2
        told = f"{self.micro} at a time" if self.micro > 1 else "one by one"
        self.notes.append(f"step {self.step + 1}: memory ran out; pictures of a batch go {told} from here on, which takes longer and changes no result")

    def _micros(self, number: int) -> Iterator[Micro]:
        """A batch, in as many pieces as memory asks for."""
        reached("batch")
        chosen = teams.current().share(self.plan.batch(number))
        size = self.micro or len(chosen)
        for start in range(0, len(chosen), size or 1):
            yield self._micro(chosen[start : start + size])

    def _micro(self, chosen: Sequence[tuple[Want, Draw]]) -> Micro:
        return drawn(self.store, [draw for _, draw in chosen], [want for want, _ in chosen], self.plan.config)

    def looks(self) -> bool:
        """Whether it is time to look at the held-out pictures: every so many steps, before the first and after the last."""
        return self.watch is not None and (self.step % self.plan.config.validation_every == 0 or self.step == self.plan.steps)

    def validate(self) -> Validation:
        """The held-out loss of the weights that the run gives. Before the first step it is the base's own, and no candidate for the best."""
        assert self.watch is not None
        with self.shown(), evaluating(self.components):
            found = measure(self.plan.held, self.plan.config.seed, self._at_once(), self.losses)
        counts = self.step % self.plan.config.validation_every == 0
        best = self.step > 0 and self.watch.judge(self.step, found.loss, counts=counts)
        low, high = found.interval() or (None, None)
        levels, pictures = found.by_level(), found.by_picture()
        return Validation(step=self.step, loss=found.loss, low=low, high=high, by_level=levels, by_picture=pictures, best=best, stale=self.watch.stale)

    def losses(self, chosen: Sequence[tuple[Want, Draw]]) -> torch.Tensor:
        """(B,) the losses of these pictures with their draws."""
        return self.stepper.measure(self._micro(chosen))

    @property
    def best(self) -> int | None:
        """The step whose checkpoint is kept as the best, if the settings ask for one."""
        return self.watch.best_step or None if self.watch and self.plan.config.keep_best else None

    @property
    def exhausted(self) -> bool:
        """Whether there was no new best for as long as the settings are patient."""
        patience = self.plan.config.early_stop
        return self.watch is not None and patience is not None and self.watch.stale >= patience

    @property
    def verdict(self) -> str:
        """Why the run ends before its last step."""
        assert self.watch is not None
        given = f"the LoRA is that of step {self.watch.best_step}, the lowest" if self.best else f"the lowest loss was at step {self.watch.best_step}"
        return f"stopped early at step {self.step}: {self.watch.stale} looks at the held-out pictures without a new best; {given}"

    def save(self) -> Checkpoint:
        """Write a checkpoint of this step, all or nothing."""
        stepper = self.stepper
        self.check_base()
        with self._exposed():
            adapter = attach.collect(self.attached)
        tensors, entries = carried.gathered(self.carried)
        state = checkpoint.State(
            step=self.step,
            family=self.family.facts.name,
            images=self.plan.images_hash,
            settings=self.settings(),
            skipped=self.skipped,
            loss_scale=stepper.loss_scale,
            scaled_steps=stepper.scaled_steps,
            micro=self.micro,
            in_a_row=self.in_a_row,
            origin=self.origin,
            entries=entries,
        )
        self.saved = stored = checkpoint.save(self.folder / "checkpoints", state, adapter, tensors, best=self.step == self.best)
        checkpoint.retain(stored.path.parent, self.plan.config.keep_checkpoints, self.plan.config.anchor_every, self.best)
        path = stored.path.relative_to(self.folder).as_posix()
        return Checkpoint(step=self.step, path=path, adapter=f"{path}/{checkpoint.ADAPTER}", sha256=stored.sha256, bytes=stored.bytes)

    def shown(self) -> AbstractContextManager[None]:
        """Within, the layers run with the weights that the run gives: the moving average if there is one, else what the optimizer gives."""
        return self.average.running() if self.average else self.stepper.shown()

    @contextmanager
    def _exposed(self) -> Iterator[None]:
        """The same weights in fp32: for reading them off, not for running."""
        if self.average:
            with self.average.exposed():
                yield
        else:
            with optim.given(self.stepper.optimizer), self.stepper.weights.exposed():
                yield

    def check_base(self) -> None:
        """Raise RunError if a step, a preview or a faulty memory changed the frozen base: what was trained on it is worth nothing."""
        if attach.fingerprint(self.components) != self.fingerprint:
            raise RunError(
                f"the frozen base changed while training, somewhere up to step {self.step}; no checkpoint was written, so resume from the one before"
            )

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.stepper.weights.exact)

    def settings(self) -> dict[str, Any]:
        return self.plan.config.model_dump(mode="json") | {"steps": self.plan.steps, "epochs": None}

    def facts(self) -> dict[str, Any]:
        """What to know about the run beyond its settings."""
        config, plan, c = self.plan.config, self.plan, self.components
        crops = {picture.name: crop for picture, crop in zip(plan.pictures, plan.crops, strict=True)}
        first = plan.order.buckets.index(Counter(plan.order.buckets).most_common(1)[0][0])
        shape = tuple(self.store.batch([plan.want(first)]).latents.shape[1:])
        return {
            "images": len(plan.pictures),
            "small_images": sum(crop.small for crop in plan.crops),
            "buckets": buckets.count(crops),
            "epochs": round(plan.steps * config.gradient_accumulation / plan.order.batches_per_epoch, 2),
            "modules": len(self.attached.places),
            "parameters": self.parameters,
            "scale": self.attached.scale,
            "device": str(c.device),
            "precision": str(c.dtype).removeprefix("torch."),
            "base_format": config.base_format if placing.reduced(config) else "full",
            "block_offload": config.block_offload or 0.0,
            **self.memory.facts(),
            "resumed": self.step > 0,
            "saved_weights": f"moving average, decay {config.ema_decay:g}" if config.ema_decay else "as trained",
            **({"held_out": len(plan.held)} if plan.held else {}),
            **self.stepper.objective.facts(shape),
            **self.speed.facts(),
        }

    def result(self, early: bool) -> dict[str, Any]:
        """What came of the run. Its checkpoint is the best one where that is kept, else the last."""
        assert self.saved is not None
        best = self.saved.path.with_name(checkpoint.name_of(self.best or self.step))
        given = best if checkpoint.is_checkpoint(best) else self.saved.path
        found: dict[str, Any] = {"checkpoint": given.relative_to(self.folder).as_posix(), "skipped": self.skipped, "finished_early": early}
        if self.watch:
            found |= {"best_step": self.watch.best_step, "best_loss": self.watch.best_loss, "stopped_early": self.exhausted}
        return found | budget.taken(self.memory, self.components.device)

    def close(self) -> None:
        """Let go of the models, so that the next job finds the memory free."""
        if hasattr(self, "components"):
            self.components.parts.clear()
        self.carried.clear()
        self.average = self.engine = None
        self.ahead.clear()
        if hasattr(self, "placed"):
            self.placed.close()
        if self.fast:
            self.fast.lean.undo()
            self.fast = None
        if hasattr(self, "stepper"):
            del self.stepper
        release(self.store.device)


def _read_lora(path: Path, c: Components) -> Any:
    if path.name == checkpoint.ADAPTER and checkpoint.is_checkpoint(path.parent):
        return checkpoint.adapter(path.parent)
    from studio.lora import formats

    return formats.read(path, c)
