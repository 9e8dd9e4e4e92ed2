"""New words that LoRAs bring: which vectors the text encoders of a base get while a stack is on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studio.families.base import Components
from studio.lora.adapter import Adapter

if TYPE_CHECKING:
    from torch import Tensor

ANY = "*"  # what files for one encoder call it


@dataclass(frozen=True)
class Brought:
    """vectors: encoder -> word -> (n, D) on its device. told: a line for all that is left out. keys: of the LoRAs that brought them."""

    vectors: "Mapping[str, Mapping[str, Tensor]]"
    told: tuple[str, ...]
    keys: tuple[str, ...]


def brought(c: Components, rows: Sequence[tuple[str, str, Adapter]]) -> Brought:
    """The new words of LoRAs, by key and name. Of two that bring one word the first counts."""
    found: dict[str, dict[str, Tensor]] = {}
    owner: dict[str, tuple[str, str]] = {}
    told: list[str] = []
    for key, name, adapter in rows:
        for word, vectors in adapter.embeddings.items():
            first, called = owner.setdefault(word.casefold(), (key, name))
            if first != key:
                told.append(f"LoRA {name}: brings the word {word!r}, which LoRA {called} brings too; that of {called} is read")
                continue
            fitting = {part: given for part in c.facts.words if (given := _of_part(c, part, vectors)) is not None}
            if not fitting:
                told.append(f"LoRA {name}: its vectors of the word {word!r} fit no text encoder of this base and are left out")
            for part, given in fitting.items():
                found.setdefault(part, {})[word] = given
    return Brought(found, tuple(dict.fromkeys(told)), tuple(dict.fromkeys(key for key, _, _ in rows)))


def _of_part(c: Components, part: str, vectors: "Mapping[str, Tensor]") -> "Tensor | None":
    """The vectors for one encoder, by what files call it and how wide they are."""
    table = c.parts[part].get_input_embeddings()
    for name in (*c.facts.words[part], ANY):
        rows = vectors.get(name)
        if rows is not None and rows.dim() in (1, 2) and rows.shape[-1] == table.embedding_dim:
            return rows.reshape(-1, table.embedding_dim).to(c.parts[part].device)
    return None
