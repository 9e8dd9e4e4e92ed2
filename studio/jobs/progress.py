"""What events mean for a job's row: values in, values out."""

from collections.abc import Iterable
from typing import Any

from studio.events import CancelledEvent, Checkpoint, Event, Failed, Finished, Image, Loading, PausedEvent, Started, Step, Validation, Warned

STATES = ("queued", "running", "paused", "finished", "failed", "cancelled", "interrupted")
ENDED = ("paused", "finished", "failed", "cancelled", "interrupted")  # nothing happens until somebody asks for it
PAUSED = "paused, its device is free"
NOT_RESPONDING = "not responding"
SMOOTHING = 0.2  # weight of the newest step in the mean seconds per step


def advanced(values: dict[str, Any], events: Iterable[Event]) -> dict[str, Any]:
    """The row's values after these events, in order."""
    values = dict(values)
    for event in events:
        values.update(_change(values, event))
    return values


def _change(values: dict[str, Any], event: Event) -> dict[str, Any]:
    match event:
        case Loading():
            counted = f" {event.done}/{event.total}" if event.total else ""
            return {"message": f"{event.phase}{counted}", "started": values["started"] or event.time}
        case Warned():
            return {"result": {**values["result"], "warnings": [*values["result"].get("warnings", []), event.message][-20:]}}
        case Started():
            return {"message": "", "step": event.step, "total": event.total, "facts": event.facts, "started": values["started"] or event.time}
        case Step():
            old, new = values["step_seconds"], event.seconds
            return {
                "message": "",
                "step": event.step,
                "total": event.total,
                "step_seconds": new if not old else old + SMOOTHING * (new - old),
                "result": {**values["result"], "loss": event.loss} if event.loss is not None else values["result"],
            }
        case Validation():
            told = {"validation_loss": event.loss, **({"best_step": event.step, "best_loss": event.loss} if event.best else {})}
            return {"result": {**values["result"], **told}}
        case Image():
            return {"result": {**values["result"], "images": values["result"].get("images", 0) + 1}}
        case Checkpoint():
            return {"result": {**values["result"], "checkpoint": event.path}}
        case Finished():
            result = {**values["result"], **event.result, "seconds": event.seconds}
            return {"state": "finished", "message": "", "finished": event.time, "step": event.step or values["step"], "result": result}
        case CancelledEvent():
            return {"state": "cancelled", "message": "cancelled", "kept": event.kept, "finished": event.time, "cancelling": None}
        case PausedEvent():
            return {"state": "paused", "message": PAUSED, "remedy": "resume goes on", "kept": event.kept, "finished": event.time, "cancelling": None}
        case Failed():
            told = {"message": event.message, "remedy": event.remedy, "kept": event.kept}
            return {
                "state": "interrupted" if event.error == "Interrupted" else "failed",
                **told,
                "finished": event.time,
                "result": {**values["result"], "error": event.error},
            }
        case _:
            return {}
