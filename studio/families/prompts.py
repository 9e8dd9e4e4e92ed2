"""Prompts of any length with weights, for the two kinds of text encoders: CLIP, which sees 75 tokens at once, and T5, which sees all."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from studio.families.base import Passage

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 75  # CLIP's tokens between begin and end
BACKTRACK = 20  # a window ends at its last comma if that is no further back


Token = tuple[int, float]  # id and weight


def clip_windows(tokenizer: Any, prompt: Sequence[Passage]) -> list[list[Token]]:
    """Windows of at most 75 tokens; a passage begins a new one, and a full one is cut after a late comma, as A1111 does."""
    comma = _ids(tokenizer, ",")[-1]
    windows: list[list[Token]] = []
    for passage in prompt:
        windows.append([])
        last_comma = -1
        for number, weight in ((number, weight) for text, weight in passage for number in _ids(tokenizer, text)):
            window = windows[-1]
            if number == comma:
                last_comma = len(window)
            elif len(window) == WINDOW and last_comma >= 0 and WINDOW - last_comma <= BACKTRACK:
                windows.append(window[last_comma + 1 :])
                del window[last_comma + 1 :]
                last_comma = -1
            if len(windows[-1]) == WINDOW:
                windows.append([])
                last_comma = -1
            windows[-1].append((number, weight))
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


def t5_batch(tokenizer: Any, prompt: Sequence[Passage], length: int, least: int, device: Any) -> "tuple[Tensor, Tensor]":
    """Ids (1, L) and weights (1, L) of all passages in a row; L is a multiple of `length`, as small as the prompt and `least` let it be."""
    import torch

    tokens = [(number, weight) for passage in prompt for text, weight in passage for number in _ids(tokenizer, text)]
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


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
