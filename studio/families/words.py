"""New words of text encoders: vectors that stand where a word would, beside a table of tokens that stays as it is.

The tokens of a new word have ids below 0; -1 is the first vector of the first word. CLIP finds the end of a text by its id, in old
configurations by the largest id, and finds it still: a larger table would have moved it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from studio.families import parts
from studio.families.base import Components

if TYPE_CHECKING:
    from torch import Tensor

    Vectors = Mapping[str, Tensor]  # word -> (n, D), in the order of their ids

Piece = tuple[int, ...]  # ids that belong together


def of(c: Components, part: str) -> "Vectors":
    """The vectors of a text encoder's new words."""
    return c.words.get(part, {})


def pieces(tokenizer: Any, text: str, vectors: "Vectors") -> list[Piece]:
    """The tokens of a text without begin and end, those of a new word as one piece. Words are found as such, in upper or lower case."""
    if not vectors:
        return [(number,) for number in _ids(tokenizer, text)]
    numbers, begin = {}, 0
    for word, rows in vectors.items():
        numbers[word.casefold()] = tuple(-1 - i for i in range(begin, begin + len(rows)))
        begin += len(rows)
    found: list[Piece] = []
    for text_or_word in _pattern(vectors).split(text):
        known = numbers.get(text_or_word.casefold())
        found += [known] if known else [(number,) for number in _ids(tokenizer, text_or_word)] if text_or_word.strip() else []
    return found


def tokenize(c: Components, part: str, captions: Sequence[str], length: int) -> "Tensor":
    """Token ids (B, length) for a text encoder, cut and padded."""
    import torch

    tokenizer, device, vectors = c.parts[part.replace("text_encoder", "tokenizer")], c.parts[part].device, of(c, part)
    if not vectors or not any(_pattern(vectors).search(caption) for caption in captions):
        return parts.tokenize(tokenizer, captions, length, device)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = []
    for caption in captions:
        ids = [number for piece in pieces(tokenizer, caption, vectors) for number in piece]
        row = [*begin, *ids[: length - len(begin) - 1], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (length - len(row)))
    return torch.tensor(rows, device=device)


def read(c: Components, part: str, ids: "Tensor", **options: Any) -> Any:
    """What a text encoder gives for ids (B, L), of which some may be below 0."""
    with _seated(c.parts[part], of(c, part)):
        return c.parts[part](ids, **options)


def learning(c: Components) -> bool:
    """Whether some vectors are in training, so that what a text encodes to changes from step to step."""
    from torch import nn

    return any(isinstance(rows, nn.Parameter) for vectors in c.words.values() for rows in vectors.values())


@contextmanager
def _seated(encoder: Any, vectors: "Vectors") -> Iterator[None]:
    """Within, the encoder's table gives the vectors for ids below 0 and what it always gave for all others."""
    import torch

    if not vectors:
        yield
        return
    table = encoder.get_input_embeddings()
    tables = [module for module in encoder.modules() if getattr(module, "weight", None) is table.weight]  # T5's stack has a module of its own for it
    rows = torch.cat(list(vectors.values()))
    asked: list[Tensor] = []

    def before(_: Any, given: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
        asked.append(given[0])
        return (given[0].clamp(min=0), *given[1:])

    def after(_: Any, given: "tuple[Tensor, ...]", own: "Tensor") -> "Tensor":
        ids = asked.pop()
        new = rows.to(own)[(-1 - ids).clamp(min=0)]
        return torch.where((ids < 0)[..., None], new, own)

    hooks = [hook for one in tables for hook in (one.register_forward_pre_hook(before), one.register_forward_hook(after))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _pattern(vectors: "Vectors") -> re.Pattern[str]:
    """The new words in a text, the longest first where one begins like another."""
    named = "|".join(re.escape(word) for word in sorted(vectors, key=len, reverse=True))
    return re.compile(rf"(?<![\w])({named})(?![\w])", re.IGNORECASE)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
