"""LoRAs that make few steps enough, known by their names, and the settings they need. Without torch."""

import re
from collections.abc import Mapping
from typing import Any

# Settings as their makers give them. A pattern may catch the number of steps that a file is made for.
_KINDS: tuple[tuple[str, re.Pattern[str], Mapping[str, Mapping[str, Any]]], ...] = (
    ("Lightning", re.compile(r"lightning"), {"sdxl": {"steps": 4, "guidance": 1.0, "sampler": "Euler SGM Uniform"}}),
    (
        "Hyper-SD",
        re.compile(r"hyper[-_ ]?(sd|flux)"),
        {"sdxl": {"steps": 8, "guidance": 1.0, "sampler": "Euler SGM Uniform"}, "flux": {"steps": 8, "guidance": 3.5, "weight": 0.125}},
    ),
    ("DMD2", re.compile(r"dmd[-_ ]?2"), {"sdxl": {"steps": 4, "guidance": 1.0, "sampler": "LCM"}}),
    ("TCD", re.compile(r"(^|[-_ .])tcd([-_ .]|$)"), {"sdxl": {"steps": 4, "guidance": 1.0, "sampler": "TCD"}}),
    (
        "LCM",
        re.compile(r"(^|[-_ .])lcm([-_ .]|$)"),
        {"sdxl": {"steps": 6, "guidance": 1.5, "sampler": "LCM"}, "flux": {"steps": 6, "guidance": 3.5, "sampler": "LCM"}},
    ),
    ("Turbo", re.compile(r"turbo"), {"sdxl": {"steps": 4, "guidance": 1.0, "sampler": "Euler a"}, "flux": {"steps": 8, "guidance": 3.5}}),
)
_STEPS = re.compile(r"(\d{1,2})[-_ ]?steps?")


def recognise(family: str, *names: str) -> dict[str, Any]:
    """{"kind", "settings", "weight"} of an accelerator by any of its names (file, title), or nothing.

    settings go into GenerateConfig; a number of steps in the name counts before the usual one.
    """
    for name in (name.lower() for name in names if name):
        for kind, pattern, known in _KINDS:
            if pattern.search(name) and family in known:
                settings = {key: value for key, value in known[family].items() if key != "weight"}
                steps = _STEPS.search(name)
                return {"kind": kind, "settings": settings | ({"steps": int(steps[1])} if steps else {}), "weight": known[family].get("weight", 1.0)}
    return {}
