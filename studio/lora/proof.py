"""The proof that goes with an exported file: who read it back, what they found, and which programs will load it."""

import dataclasses
from pathlib import Path
from typing import Any

from studio.errors import FormatError
from studio.lora import clients, formats
from studio.lora.adapter import Adapter
from studio.lora.crosscheck import Crosscheck, crosscheck

# diffusers folds alpha into the factors in the file's own number format, so it may be off a little more than the file.
_TOLERANCE = {"F32": 2e-6, "F16": 4e-3, "BF16": 2e-2}


def prove(path: Path, adapter: Adapter, format: str) -> dict[str, Any]:
    """Read the file back with the studio's reader and with diffusers, compare every delta with the adapter, and ask the rules of other programs.

    The report is made of JSON values; `passed` says whether the file may be given away, `faults` why not.
    """
    try:
        found = formats.verify(path, adapter)
    except FormatError as error:
        return {"file": path.name, "passed": False, "faults": [str(error)], "loaders": [], "clients": [], "notes": []}
    verdicts = clients.examine(path)
    own = {"loader": "LoRA Studio", "run": True, "modules": found["modules"], "worst": found["worst_difference"], "worst_module": found["worst_module"]}
    theirs = dataclasses.asdict(_crosschecked(path, adapter, verdicts))
    faults = clients.faults(verdicts, format)
    if theirs["fault"]:
        faults.append(f"{theirs['loader']}: {theirs['fault']}")
    elif theirs["worst"] > _TOLERANCE[found["dtype"]]:
        faults.append(f"{theirs['loader']}: {theirs['worst_module']} differs by {theirs['worst']:.1e} from what was trained")
    return {
        **found,
        "passed": not faults,
        "faults": faults,
        "loaders": [{**own, "fault": "", "note": ""}, theirs],
        "clients": table(verdicts),
        "notes": _notes(path),
    }


def table(verdicts: tuple[clients.Verdict, ...]) -> list[dict[str, Any]]:
    """The verdicts as JSON values, each with whether it is `good`."""
    return [{**dataclasses.asdict(verdict), "reasons": list(verdict.reasons), "good": verdict.good} for verdict in verdicts]


def examined(path: Path) -> dict[str, Any]:
    """What other programs make of a file, with what is to be known about it: {"clients", "notes"}."""
    return {"clients": table(clients.examine(path)), "notes": _notes(path)}


def _crosschecked(path: Path, adapter: Adapter, verdicts: tuple[clients.Verdict, ...]) -> Crosscheck:
    """diffusers' own loader, unless its rules say that it cannot take all of the file anyway."""
    verdict = next(v for v in verdicts if v.client == "diffusers")
    if verdict.loads != "yes":
        return Crosscheck("diffusers", False, note=f"not run: {'; '.join(verdict.reasons)}")
    return crosscheck(path, adapter)


def _notes(path: Path) -> list[str]:
    from studio.container import read_header

    if clients.content(read_header(path).shapes, {}).real:
        return []
    return ["The layers have the widths of a small base of the studio, not of the real model: other programs know the names, but have no model that it fits."]
