"""Claims about new words that LoRAs bring: they are read while the LoRA is on, by its pictures alone, and leave nothing behind."""

from dataclasses import replace

import torch

from studio.generation.conditioning import encode
from studio.generation.stack import Stack
from studio.generation.words import brought
from studio.lora.adapter import Adapter

from .conftest import adapter


def with_words(c, seed: int, *words: str) -> Adapter:
    """An adapter of random numbers that brings words for every encoder of the base."""
    draw = torch.Generator().manual_seed(seed)
    widths = {named[0]: c.parts[part].get_input_embeddings().embedding_dim for part, named in c.facts.words.items()}
    vectors = {word: {name: torch.randn(2, width, generator=draw) for name, width in widths.items()} for word in words}
    return replace(adapter(c, seed, every=40), embeddings=vectors)


def said(c, stack: Stack, text: str) -> dict[str, torch.Tensor]:
    return encode(c, text, stack.fingerprint(c.facts.text_encoders))


def same(one, two) -> bool:
    return all(torch.equal(one[key], two[key]) for key in one)


def test_a_row_that_is_on_inserts_its_words_and_takes_them_away_again(c):
    stack, one = Stack(c), with_words(c, 1, "zib")
    before = said(c, stack, "a zib"), said(c, stack, "a cat")
    stack.set([(one, 0.7)])
    on = said(c, stack, "a zib")
    assert not same(on, before[0]) and same(said(c, stack, "a cat"), before[1])
    assert all(not torch.equal(on[key], before[0][key]) for key in on), "every encoder reads it"
    stack.set([(one, 0.0)])
    assert same(said(c, stack, "a zib"), before[0]) and not c.words
    stack.set([(one, -0.2)])
    assert same(said(c, stack, "a zib"), on), "a word has no strength"
    stack.clear()
    assert same(said(c, stack, "a zib"), before[0]) and not c.words


def test_words_of_one_picture_are_not_those_of_another(c):
    stack = Stack(c)
    stack.set_each([[(with_words(c, 1, "zib"), 1.0)], [(with_words(c, 2, "zib"), 1.0)]], [["a"], ["b"]])
    first = said(c, stack, "a zib")
    stack.speak(1)
    assert not same(encode(c, "a zib", stack.fingerprint(c.facts.text_encoders, 1)), first)
    stack.speak(0)
    assert same(said(c, stack, "a zib"), first)
    stack.clear()


def test_a_weight_in_the_prompt_reaches_all_vectors_of_a_word(c):
    stack = Stack(c)
    stack.set([(with_words(c, 1, "zib"), 1.0)])
    plain, heavy = said(c, stack, "a zib"), said(c, stack, "a (zib:1.5)")
    assert not torch.equal(plain["prompt_embeds"], heavy["prompt_embeds"])
    stack.clear()


def test_two_loras_with_one_word_are_told_and_the_order_of_rows_makes_no_difference(c):
    one, two = with_words(c, 1, "zib", "zab"), with_words(c, 2, "Zib")
    stack, found = Stack(c), []
    for rows, names in (([one, two], ["one", "two"]), ([two, one], ["two", "one"])):
        report = stack.set([(row, 1.0) for row in rows], names)
        assert len(report.warnings) == 1 and "brings too" in report.warnings[0]
        found.append(said(c, stack, "zib zab"))
    assert same(*found)
    stack.clear()


def test_vectors_for_another_base_are_left_out_and_told(c):
    narrow = replace(with_words(c, 1), embeddings={"zib": {"clip_l": torch.zeros(2, 7)}})
    found = brought(c, [("key", "mine", narrow)])
    assert not found.vectors and found.told == ("LoRA mine: its vectors of the word 'zib' fit no text encoder of this base and are left out",)


def test_adapters_that_differ_in_their_words_alone_are_two(c):
    one = with_words(c, 1, "zib")
    other = replace(one, embeddings={"zib": {name: rows + 1 for name, rows in one.embeddings["zib"].items()}})
    stack, found = Stack(c), []
    for row in (one, other):
        stack.set([(row, 1.0)])
        found.append(said(c, stack, "a zib"))
    assert not same(*found)
    stack.clear()
