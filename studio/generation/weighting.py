"""Weights in a prompt, as A1111 and its followers write them: (more), [less], (exactly:1.3), \\( for a bracket, BREAK for a new block of tokens."""

import re
from itertools import pairwise

from studio.families.base import Passage

MORE, LESS = 1.1, 1 / 1.1
_TOKEN = re.compile(r"\\[\\()\[\]]|\\|\(|\[|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|\]|\s*\bBREAK\b\s*|\s+|[^\\()\[\]:\s]+|:")


def passages(prompt: str) -> tuple[Passage, ...]:
    """The prompt as blocks between BREAKs, each a row of (text, weight); neighbours of one weight are joined.

    Weights multiply where brackets are nested; the two kinds of brackets are paired each for itself. One that nothing closes weighs all
    that follows, one that closes nothing is text.
    """
    spans: list[tuple[str, float]] = []
    breaks: list[int] = []  # before which span a new block begins
    round_ones, square_ones = [], []  # the first span inside

    def weigh(begin: int, factor: float) -> None:
        spans[begin:] = [(text, weight * factor) for text, weight in spans[begin:]]

    for found in _TOKEN.finditer(prompt):
        token = found[0]
        if token == "(":
            round_ones.append(len(spans))
        elif token == "[":
            square_ones.append(len(spans))
        elif token.endswith(")") and token[0] in ":)" and round_ones:
            weigh(round_ones.pop(), MORE if found[1] is None else float(found[1]))
        elif token == "]" and square_ones:
            weigh(square_ones.pop(), LESS)
        elif token.strip() == "BREAK":
            breaks.append(len(spans))
        else:
            spans.append((token.removeprefix("\\") if token[0] == "\\" else token, 1.0))
    for begin in round_ones:
        weigh(begin, MORE)
    for begin in square_ones:
        weigh(begin, LESS)
    return tuple(_joined(spans[a:b]) for a, b in pairwise([0, *breaks, len(spans)]))


def plain(prompt: str) -> str:
    """The words alone, as an encoder without weights reads them."""
    return " ".join("".join(text for text, _ in passage).strip() for passage in passages(prompt)).strip()


def _joined(spans: list[tuple[str, float]]) -> Passage:
    found: list[tuple[str, float]] = []
    for text, weight in spans:
        if found and found[-1][1] == weight:
            found[-1] = (found[-1][0] + text, weight)
        else:
            found.append((text, weight))
    return tuple(found) or (("", 1.0),)
