"""What a run says, also told to TensorBoard, Weights & Biases or MLflow through accelerate. Everything lands in the job's folder."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.config import Tracker, TrainConfig
from studio.errors import SettingsError
from studio.events import Event, Sample, Started, Step, Validation, Warned

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

FOLDER = "trackers"
SERVER = os.environ.get("MLFLOW_TRACKING_URI", "")  # looked at once: MLflow sets it itself, and the next run of this process has another folder
PACKAGES: dict[Tracker, str] = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}


def check(names: Sequence[Tracker]) -> None:
    """Raise SettingsError if a package that they need is not installed."""
    missing: Tracker | None = next((name for name in names if importlib.util.find_spec(name) is None), None)
    if missing:
        raise SettingsError(f"trackers {missing!r}: the package is not installed; pip install {PACKAGES[missing]}, or leave it out")


def tracked(events: Iterator[Event], config: TrainConfig, folder: Path) -> Iterator[Event]:
    """The same events. A tracker that fails is let go with a warning: it is no reason to lose a run."""
    trackers: dict[Tracker, GeneralTracker] = {}
    try:
        for event in events:
            yield event
            if isinstance(event, Started) and config.trackers:
                for name in config.trackers:
                    try:
                        trackers[name] = _begin(name, config.name, folder / FOLDER, event.settings)
                    except Exception as error:
                        yield _let_go(name, error)
            for name, tracker in list(trackers.items()):
                try:
                    _tell(tracker, event, folder)
                except Exception as error:
                    del trackers[name]
                    yield _let_go(name, error)
    finally:
        for tracker in trackers.values():
            tracker.finish()
        close = getattr(events, "close", None)
        if close is not None:
            close()


def _let_go(name: str, error: Exception) -> Warned:
    return Warned(message=f"{name} is told nothing more: {type(error).__name__}: {str(error)[:200]}")


def _begin(name: Tracker, run: str, folder: Path, settings: dict[str, Any]) -> "GeneralTracker":
    from accelerate import PartialState, tracking

    PartialState()  # trackers ask it whether they are in the first process, and the worker is the only one that tracks
    folder.mkdir(parents=True, exist_ok=True)
    tracker: GeneralTracker
    if name == "tensorboard":
        tracker = tracking.TensorBoardTracker(run, folder / name)
    elif name == "wandb":
        os.environ.setdefault("WANDB_MODE", "offline")
        tracker = tracking.WandBTracker("lora-studio", dir=str(folder), name=run)
    else:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # it would tell its makers of every run
        import mlflow

        mlflow.set_tracking_uri(SERVER or f"sqlite:///{folder / 'mlflow.db'}")
        tracker = tracking.MLflowTracker("lora-studio", logging_dir=(folder / name).as_uri(), run_name=run)
    tracker.start()
    tracker.store_init_configuration({key: value if isinstance(value, int | float | str | bool) else str(value) for key, value in settings.items()})
    return tracker


def _tell(tracker: "GeneralTracker", event: Event, folder: Path) -> None:
    if isinstance(event, Step):
        values = {"loss": event.loss, "learning_rate": event.learning_rate, "gradient_norm": event.gradient_norm, "seconds": event.seconds}
        tracker.log({key: value for key, value in values.items() if value is not None}, step=event.step)
    elif isinstance(event, Validation):
        tracker.log({"validation_loss": event.loss}, step=event.step)
    elif isinstance(event, Sample) and hasattr(tracker, "log_images"):
        _show(tracker, event, folder / event.path)


def _show(tracker: Any, sample: Sample, path: Path) -> None:
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        pixels = np.array(picture.convert("RGB"))
    title = f"sample: {sample.prompt[:80]}"
    if tracker.name == "tensorboard":
        tracker.log_images({title: pixels[None]}, step=sample.step, dataformats="NHWC")
    else:
        tracker.log_images({title: [pixels]}, step=sample.step)
