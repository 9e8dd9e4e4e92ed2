"""Prompts of any length with weights, for the two kinds of text encoders: CLIP, which sees 75 tokens at once, and T5, which sees all."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from studio.families import words
from studio.families.base import Passage

if TYPE_CHECKING:
    from torch import Tensor

    from studio.families.words import Vectors

WINDOW = 75  # CLIP's tokens between begin and end
BACKTRACK = 20  # a window ends at its last comma if that is no further back
NONE: "Vectors" = MappingProxyType({})

Token = tuple[int, float]  # id and weight


def clip_windows(tokenizer: Any, prompt: Sequence[Passage], new: "Vectors" = NONE) -> list[list[Token]]:
    """Windows of at most 75 tokens; a passage begins a new one, and a full one is cut after a late comma, as A1111 does.

    new: words with vectors of their own, which no window cuts in two.
    """
    comma = words.pieces(tokenizer, ",", NONE)[-1][0]
    windows: list[list[Token]] = []
    for passage in prompt:
        windows.append([])
        last_comma = -1
        for piece, weight in ((piece, weight) for text, weight in passage for piece in words.pieces(tokenizer, text, new)):
            window = windows[-1]
            full = len(window) + len(piece) > WINDOW
            if piece == (comma,):
                last_comma = len(window)
            elif full and last_comma >= 0 and WINDOW - last_comma <= BACKTRACK:
                windows.append(window[last_comma + 1 :])
                del window[last_comma + 1 :]
                last_comma = -1
            if len(windows[-1]) + len(piece) > WINDOW:
                windows.append([])
                last_comma = -1
            windows[-1] += [(number, weight) for number in piece]
    return windows


def clip_batch(tokenizer: Any, windows: Sequence[Sequence[Token]], device: Any) -> "tuple[Tensor, Tensor]":
    """Ids (n, 77) with begin, end and padding as the tokenizer pads, and the weight of each token (n, 77)."""
    import torch

    ids, weights = [], []
    for window in windows:
        rest = WINDOW - len(window)
        ids.append([tokenizer.bos_token_id, *(number for number, _ in window), tokenizer.eos_token_id, *[tokenizer.pad_token_id] * rest])
        weights.append([1.0, *(weight for _, weight in window), *[1.0] * (rest + 1)])
    return torch.tensor(ids, device=device), torch.tensor(weights, device=device)


def t5_batch(tokenizer: Any, prompt: Sequence[Passage], length: int, least: int, device: Any, new: "Vectors" = NONE) -> "tuple[Tensor, Tensor]":
    """Ids (1, L) and weights (1, L) of all passages in a row; L is a multiple of `length`, as small as the prompt and `least` let it be."""
    import torch

    tokens = [(number, weight) for passage in prompt for text, weight in passage for piece in words.pieces(tokenizer, text, new) for number in piece]
    tokens.append((tokenizer.eos_token_id, 1.0))
    whole = -(-max(len(tokens), least) // length) * length
    tokens += [(tokenizer.pad_token_id, 1.0)] * (whole - len(tokens))
    return torch.tensor([[number for number, _ in tokens]], device=device), torch.tensor([[weight for _, weight in tokens]], device=device)


def weighed(states: "Tensor", weights: "Tensor") -> "Tensor":
    """Hidden states (n, L, D) times the weights of their tokens (n, L), each row brought back to the mean it had, as A1111 does."""
    if bool((weights == 1).all()):
        return states
    heavy = states.float() * weights[..., None]
    means = [value.mean(dim=(1, 2), keepdim=True) for value in (states.float(), heavy)]
    return (heavy * (means[0] / means[1])).to(states.dtype)


def in_a_row(states: "Tensor") -> "Tensor":
    """Windows (n, L, D) as one prompt (1, n * L, D)."""
    return states.reshape(1, -1, states.shape[-1])
