"""Tokenizers of the demo bases, trained on their own captions: a CLIP vocabulary of 1,700 pieces and a T5 one of 700."""

import json
import random
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.demo.renderer import BACKGROUNDS
from studio.demo.sprites import emojis

CLIP_TOKENS = 77
CLIP_VOCABULARY = 1700
T5_VOCABULARY = 700
N_CAPTIONS = 20_000


def words() -> list[str]:
    """Every word that captions use, sorted."""
    phrases = [*(emoji.name for emoji in emojis()), *(emoji.alias for emoji in emojis()), *BACKGROUNDS]
    return sorted({*" ".join(phrases).split(), "a", "an", "and", "next", "to", "on", "background", "small"})


def clip_tokenizer(captions: Sequence[str]) -> Any:
    """A CLIPTokenizer that keeps caption words whole and spells out all others."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(vocab_size=CLIP_VOCABULARY, end_of_word_suffix="</w>", initial_alphabet=alphabet, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator([*captions, *words() * 3], trainer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.model.save(folder)
        learned = json.loads((Path(folder) / "vocab.json").read_text(encoding="utf-8"))
        lines = (Path(folder) / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges: Any = [tuple(line.split()) for line in lines if line and not line.startswith("#")]
    # CLIP's own order: bytes, bytes that end a word, merges, the two marks.
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *sorted(learned, key=learned.get), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_TOKENS)


def t5_tokenizer(captions: Sequence[str]) -> Any:
    """A T5Tokenizer of the same words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Tokenizer

    tokenizer = Tokenizer(models.Unigram())
    metaspace = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    letters = list(string.ascii_letters + string.digits + string.punctuation)
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=T5_VOCABULARY, unk_token="<unk>", special_tokens=special, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator([*captions, *words() * 3], trainer)
    pieces = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    known = {piece for piece, _ in pieces}
    pieces += [("\u2581" + word, -5.0) for word in [*words(), "A", "An"] if "\u2581" + word not in known]
    return T5Tokenizer(vocab=pieces, extra_ids=0, additional_special_tokens=[], model_max_length=512)


def shuffled_letters(rng: random.Random) -> str:
    """A word that no caption has."""
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 7)))
