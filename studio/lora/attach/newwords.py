"""Vectors of new words in training: they begin, are read off, and are put back; the tables of the text encoders stay as they are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from studio.config.training.newwords import NewWords
from studio.errors import FormatError, SettingsError
from studio.families import words
from studio.families.base import Components
from studio.lora.adapter import Adapter
from studio.lora.attach.weights import taken

if TYPE_CHECKING:
    from torch import Tensor, nn

    Embeddings = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Vectors:
    """encoder -> word -> (n, D). rate: share of the run's learning rate."""

    components: Components
    rows: "Mapping[str, Mapping[str, nn.Parameter]]"
    rate: float

    def parameters(self) -> "Iterator[tuple[str, str, nn.Parameter]]":
        """Name, path in a file, parameter."""
        for part, found in self.rows.items():
            for word, parameter in found.items():
                yield f"{part}:{word}", f"bundle_emb.{word}.{self.components.facts.words[part][0]}", parameter

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(name for name, _, _ in self.parameters())

    def leave(self) -> None:
        """Leave the vectors as they are from now on."""
        for _, _, parameter in self.parameters():
            parameter.requires_grad_(False)

    def collect(self) -> "Embeddings":
        """Copies on the CPU in fp32, as an adapter holds them."""
        named = self.components.facts.words
        every = dict.fromkeys(word for found in self.rows.values() for word in found)
        return {word: {named[part][0]: taken(found[word]) for part, found in self.rows.items()} for word in every}

    def load(self, adapter: Adapter) -> None:
        """Take over the vectors that an adapter brings. Raises FormatError for one of another size or for none of these words."""
        import torch

        strange = [word for word in adapter.embeddings if word not in next(iter(self.rows.values()), {})]
        if strange:
            raise FormatError(f"the LoRA brings the new word {strange[0]!r}, which is not trained here; add it to new_words")
        with torch.no_grad():
            for part, found in self.rows.items():
                for word, parameter in found.items():
                    brought = adapter.embeddings.get(word, {})
                    given = next((brought[name] for name in self.components.facts.words[part] if name in brought), None)
                    if given is None:
                        continue
                    if given.shape != parameter.shape:
                        raise FormatError(f"new word {word}: the LoRA has vectors {list(given.shape)} for it, here {list(parameter.shape)}; set word_vectors")
                    parameter.copy_(given)


def begin(c: Components, config: NewWords, rate: float) -> Vectors:
    """Vectors in fp32 for the loaded encoders that take new words, which read them from now on.

    Numbers are drawn from torch's own generator on the CPU. Raises SettingsError if a beginning says nothing.
    """
    rows = {part: {word: _first(c, part, config, number) for number, word in enumerate(config.new_words)} for part in encoders(c, config)}
    c.words = {part: dict(found) for part, found in rows.items()}
    return Vectors(c, rows, rate)


def encoders(c: Components, config: NewWords) -> list[str]:
    """The text encoders whose vectors are trained: those of CLIP, and T5 where it is asked for."""
    clips = [part for part in c.facts.words if type(c.parts.get(part)).__name__.startswith("CLIPText")]
    return [part for part in c.facts.words if part in clips or (config.word_t5 and part in c.parts)]


def _first(c: Components, part: str, config: NewWords, number: int) -> "nn.Parameter":
    import torch
    from torch import nn

    table = c.parts[part].get_input_embeddings().weight.detach().float().cpu()
    said = config.word_init[number] if number < len(config.word_init) else ""
    if said:
        found = [one for piece in words.pieces(c.parts[part.replace("text_encoder", "tokenizer")], said, {}) for one in piece]
        if not found:
            raise SettingsError(f"word_init {said!r}: the tokenizer of {part} finds no word in it; write ordinary words")
        rows = table[[found[i % len(found)] for i in range(config.word_vectors)]]
    else:
        rows = table.mean(0) + torch.randn(config.word_vectors, table.shape[1]) * table.std()
    return nn.Parameter(rows.to(c.device))
