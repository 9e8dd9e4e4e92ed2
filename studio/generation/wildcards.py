"""Prompts that differ from picture to picture: {red|blue}, and __colour__ for a line of wildcards/colour.txt; drawn by the picture's seed."""

import re
from pathlib import Path
from random import Random

from studio.errors import SettingsError

DEPTH = 16  # wildcards inside wildcards
MAX_BYTES = 4 * 2**20
_NAME = re.compile(r"__([A-Za-z0-9][A-Za-z0-9_.\-/ ]*?)__")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\- ]*")
_COUNT = re.compile(r"(?:(\d+)(?:-(\d+))?)\$\$(?:([^{}|]*?)\$\$)?")
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)::")


def dynamic(prompt: str) -> bool:
    """Whether there is anything to draw in it."""
    return "{" in prompt or bool(_NAME.search(prompt))


def resolve(prompt: str, seed: int, folder: Path | None) -> str:
    """The prompt of the picture with this seed. `folder` holds NAME.txt, one choice a line, # for remarks; also in folders inside.

    {a|b|c} takes one, {2$$a|b|c} two of them, {1-3$$ and $$a|b|c} one to three with " and " between, {3::a|b} takes a three times as often.
    Raises SettingsError for a wildcard that is not there, for braces that nothing closes, and for LoRA tags among the choices: a stack
    is one for all pictures.
    """
    if not dynamic(prompt):
        return prompt
    found = _resolved(prompt, Random(f"prompt {seed}"), folder, 0)
    if re.search(r"<(lora|lyco):", found, re.IGNORECASE):
        raise SettingsError("prompt: a LoRA tag stands among choices; put it outside of braces and wildcards, the stack is one for all pictures")
    return found


def names(folder: Path) -> list[str]:
    """Every wildcard of the folder, as it is called between __ and __."""
    files = sorted(path for path in folder.rglob("*.txt") if path.is_file() and path.resolve().is_relative_to(folder.resolve()))
    called = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    return [name for name in called if all(_PART.fullmatch(part) for part in name.split("/"))]


def choices(name: str, folder: Path | None) -> list[str]:
    """The lines of a wildcard. Raises SettingsError if there is none of that name, or it is empty; no name leads out of the folder."""
    parts = name.split("/")
    path = folder.joinpath(*parts).with_name(f"{parts[-1]}.txt") if folder else None
    inside = path is not None and folder is not None and all(_PART.fullmatch(part) for part in parts) and path.resolve().is_relative_to(folder.resolve())
    if path is None or not inside or not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise SettingsError(f"prompt: there is no wildcard __{name}__; put {parts[-1]}.txt, one choice a line, into the data folder's wildcards")
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise SettingsError(f"prompt: wildcard __{name}__ has no choices; write one a line into {parts[-1]}.txt")
    return found


def _resolved(text: str, draw: Random, folder: Path | None, depth: int) -> str:
    if depth > DEPTH:
        raise SettingsError(f"prompt: wildcards stand inside each other more than {DEPTH} deep; does one name itself?")
    while (begin := text.find("{")) >= 0:
        end = _closing(text, begin)
        text = text[:begin] + _picked(text[begin + 1 : end], draw, folder, depth) + text[end + 1 :]
    while found := _NAME.search(text):
        line = draw.choice(choices(found[1], folder))
        text = text[: found.start()] + _resolved(line, draw, folder, depth + 1) + text[found.end() :]
    return text


def _closing(text: str, begin: int) -> int:
    level = 0
    for at in range(begin, len(text)):
        level += {"{": 1, "}": -1}.get(text[at], 0)
        if level == 0:
            return at
    raise SettingsError(f"prompt: nothing closes the brace at {text[begin : begin + 30]!r}; write {{a|b}}")


def _picked(inside: str, draw: Random, folder: Path | None, depth: int) -> str:
    """What comes in place of {inside}."""
    counted = _COUNT.match(inside)
    options = [_shared(option) for option in _split(inside[counted.end() if counted else 0 :])]
    if not counted:
        option = draw.choices([text for _, text in options], [share for share, _ in options])[0] if any(share for share, _ in options) else ""
        return _resolved(option, draw, folder, depth + 1)
    low, high = int(counted[1]), int(counted[2] or counted[1])
    number = min(draw.randint(min(low, high), max(low, high)), len(options))
    taken: list[str] = []
    left = list(options)
    for _ in range(number):
        at = draw.choices(range(len(left)), [share or 1e-9 for share, _ in left])[0]
        taken.append(_resolved(left.pop(at)[1], draw, folder, depth + 1))
    return (", " if counted[3] is None else counted[3]).join(taken)


def _split(text: str) -> list[str]:
    """The options between the bars that are not in braces of their own."""
    found, level = [""], 0
    for letter in text:
        level += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "|" and level == 0:
            found.append("")
        else:
            found[-1] += letter
    return found


def _shared(option: str) -> tuple[float, str]:
    found = _SHARE.match(option)
    return (float(found[1]), option[found.end() :].strip()) if found else (1.0, option.strip())
