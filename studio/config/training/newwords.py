"""Words that get vectors of their own in the text encoders, beside the network or before it (pivotal tuning)."""

from typing import Annotated, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from studio.config.settings import Settings
from studio.config.values import lines, words

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_\-]{0,63}$")]
FASTER = 5.0  # times the run's rate: the 5e-4 of diffusers' textual inversion beside the 1e-4 of its LoRA scripts


class NewWords(Settings):
    TITLE: ClassVar[str] = "New words"

    # Forge refuses a file in which more than 12 tensors mean nothing to it; a word has two.
    new_words: Annotated[tuple[Word, ...], BeforeValidator(words)] = Field(
        default=(), max_length=6, description="Words that get vectors of their own, by commas, bundled in the file (pivotal tuning); captions must hold them"
    )
    word_vectors: int = Field(default=2, ge=1, le=16, description="Vectors of each new word; each takes one of the 75 places that CLIP reads")
    word_init: Annotated[tuple[str, ...], BeforeValidator(lines)] = Field(
        default=(), max_length=6, description="What the vectors start from, one line a word, such as woodcut print; empty starts at random"
    )
    word_learning_rate: float | None = Field(
        default=None, gt=0, le=10, description="Learning rate of the vectors; empty is five times the run's, with prodigy the run's own"
    )
    word_stop: int | None = Field(default=None, ge=1, le=1_000_000, description="Step after which the vectors stay as they are; half of the run is usual")
    word_t5: bool = Field(default=False, description="Give T5 of FLUX.1 the new words too: it tells the picture more than CLIP, and must be loaded in training")

    @model_validator(mode="after")
    def _about_words(self) -> Self:
        fields = NewWords.model_fields
        moved = [name for name in fields if name != "new_words" and getattr(self, name) != fields[name].get_default()]
        if moved and not self.new_words:
            raise ValueError(f"{moved[0]} means nothing without new_words: name the words, or leave it out")
        if len(self.word_init) > len(self.new_words):
            raise ValueError(f"word_init has {len(self.word_init)} lines for {len(self.new_words)} new words: write one line a word")
        twice = {word.casefold() for word in self.new_words}
        if len(twice) < len(self.new_words):
            raise ValueError("new_words: two of them differ in upper and lower case alone, which CLIP does not tell apart; name them differently")
        return self
