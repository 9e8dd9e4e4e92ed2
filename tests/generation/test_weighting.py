"""Weights and long prompts, with A1111's own examples as reference numbers (its documentation of prompt attention)."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studio.config import GenerateConfig, build
from studio.families import FAMILIES, prompts
from studio.families.base import Components, Passage
from studio.generation import conditioning
from studio.generation.weighting import passages, plain


@pytest.mark.parametrize(
    ("prompt", "spans"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)],
        ),
        ("a: b (c:d) 3:4)", [("a: b ", 1.0), ("c:d", 1.1), (" 3:4)", 1.0)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]),
        ("", [("", 1.0)]),
    ],
)
def test_brackets_weigh_as_a1111_documents_them(prompt: str, spans: list[tuple[str, float]]) -> None:
    (found,) = passages(prompt)
    assert [text for text, _ in found] == [text for text, _ in spans]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in spans])


def test_break_begins_a_new_block_and_only_as_a_word_of_its_own() -> None:
    assert passages("cat BREAK (dog BREAK fox:1.2)") == ((("cat", 1.0),), (("dog", 1.2),), (("fox", 1.2),))
    assert passages("BREAKFAST aBREAK break") == ((("BREAKFAST aBREAK break", 1.0),),)
    assert plain(r"a (red:1.3) [cat] BREAK \(x\)") == "a red cat (x)"


@given(st.text(alphabet="ab ,()[]:\\1.5BREAK\n", max_size=60))
def test_any_text_is_read_and_no_word_is_lost(prompt: str) -> None:
    found = passages(prompt)
    assert found and all(passage for passage in found)
    said = "".join(text for passage in found for text, _ in passage)
    assert [c for c in said if c in "ab"] == [c for c in prompt if c in "ab"]


class Words:
    """A tokenizer whose tokens are numbers of words: what the windows are cut from."""

    bos_token_id, eos_token_id, pad_token_id = -1, -2, 0

    def __call__(self, text: str, **_: object) -> "Words":
        self.input_ids = [7 if word == "," else int(word) for word in text.replace(",", " , ").split()]
        return self


def windows(*prompt: Passage) -> list[list[int]]:
    return [[number for number, _ in window] for window in prompts.clip_windows(Words(), prompt)]


def text(numbers: Sequence[int]) -> Passage:
    return ((" ".join(map(str, numbers)), 1.0),)


def test_windows_hold_75_tokens_and_break_after_a_late_comma() -> None:
    numbers = list(range(100, 260))
    assert [len(window) for window in windows(text(numbers))] == [75, 75, 10] and [n for one in windows(text(numbers)) for n in one] == numbers
    late = [*range(100, 160), 7, *range(200, 230)]  # the comma is token number 60 of 75
    assert [len(window) for window in windows(text(late))] == [61, 30]
    early = [*range(100, 150), 7, *range(200, 240)]
    assert [len(window) for window in windows(text(early))] == [75, 16]
    assert windows(text([1, 2]), text([3])) == [[1, 2], [3]] and windows(text([])) == [[]]


def encoded(c: Components, prompt: str, tokens: int = 0) -> dict[str, torch.Tensor]:
    return FAMILIES[c.facts.name].encode_prompt(c, passages(prompt), tokens)


def test_a_short_plain_prompt_is_encoded_as_a_caption_is(c: Components) -> None:
    for prompt in ("", "cat face, blueprint style"):
        caption = FAMILIES[c.facts.name].encode_captions(c, [prompt])
        found = encoded(c, prompt)
        assert all(torch.equal(found[key], caption[key]) for key in caption), prompt


def test_a_weight_changes_the_words_it_is_on_and_keeps_the_mean(c: Components) -> None:
    base, heavy, one = (encoded(c, prompt)["prompt_embeds"].float() for prompt in ("a red cat", "a (red:1.5) cat", "a (red:1.0) cat"))
    if c.facts.negative_prompts:  # T5 reads pieces with a space of their own
        assert torch.equal(base, one)
    assert not torch.allclose(heavy, one, atol=1e-3)
    assert float(heavy.mean()) == pytest.approx(float(one.mean()), abs=1e-3)
    assert torch.equal(encoded(c, "a (red:1.5) cat")["pooled_prompt_embeds"], encoded(c, "a red cat")["pooled_prompt_embeds"])


def test_words_beyond_the_first_window_count(c: Components) -> None:
    long = ", ".join(["a very small cat in a tall green hat"] * 12)
    first, second = encoded(c, f"{long}, sunny day"), encoded(c, f"{long}, rainy night")
    short = encoded(c, "cat")["prompt_embeds"].shape[1]
    assert first["prompt_embeds"].shape[1] > short and first["prompt_embeds"].shape[1] % short == 0
    assert not torch.equal(first["prompt_embeds"], second["prompt_embeds"])
    cut = FAMILIES[c.facts.name].encode_captions(c, [f"{long}, sunny day", f"{long}, rainy night"])["prompt_embeds"]
    assert torch.equal(cut[0], cut[1]), "negative control: one window alone does not hold these words"


def test_prompts_of_different_length_are_drawn_between_in_one_batch(c: Components) -> None:
    config = build(GenerateConfig, {"negative_prompt": "blurry", "guidance": 4.0, "true_cfg": 2.0})
    long = " ".join(["green"] * 130)
    for prompt, negative in ((long, "blurry"), ("cat", long)):
        guide = conditioning.guide(c, prompt, config.model_copy(update={"negative_prompt": negative}), "")
        assert guide.unwanted is not None and guide.wanted["prompt_embeds"].shape == guide.unwanted["prompt_embeds"].shape
    assert torch.equal(encoded(c, "cat", 100)["prompt_embeds"][:, :64], encoded(c, "cat")["prompt_embeds"][:, :64]) or not c.facts.negative_prompts
