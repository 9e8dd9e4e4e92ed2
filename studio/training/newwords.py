"""What new words ask of a run, told before it begins."""

import re
from collections.abc import Sequence

from studio.config import TrainConfig
from studio.config.training.newwords import FASTER
from studio.errors import SettingsError
from studio.families.base import Facts
from studio.training.showing import Shown

COST = (
    "new_words: captions are read anew in every step by {encoders}, in memory beside the denoiser, which takes longer than cached ones; "
    "latents come from the cache as ever"
)
CARRIED = (
    "new_words: the studio and A1111 read {words} from the LoRA file; ComfyUI, Forge and InvokeAI apply the LoRA without, unless the file of the "
    "word, which an export with side files writes, lies among their embeddings; diffusers takes the peft export and the file of the word"
)
CARRIED_FUSED = (
    "new_words: the studio reads {words} from the LoRA file; ComfyUI and Forge apply the LoRA without, ComfyUI with if the file of the word, which an export "
    "with side files writes, lies among its embeddings; InvokeAI refuses the file; diffusers takes the peft export and the file of the word"
)


def check(config: TrainConfig, facts: Facts, entries: Sequence[Shown]) -> tuple[str, ...]:
    """What to know of new words. Raises SettingsError if a word is in no caption, or a setting means nothing to this base."""
    if not config.new_words:
        return ()
    others = [part for part in facts.words if part not in _clips(facts)]
    if config.word_t5 and not others:
        raise SettingsError(f"word_t5 is for bases with a T5, {facts.title} has none; leave it out")
    captions = [caption for one in entries for caption in one.captions]
    unsaid = [word for word in config.new_words if not any(says(caption, word) for caption in captions)]
    if unsaid:
        raise SettingsError(f"new word {unsaid[0]!r} is in no caption, so nothing would be learned: write it into captions, or set trigger to {unsaid[0]}")
    if config.optimizer == "prodigy" and config.word_learning_rate not in (None, config.learning_rate):
        raise SettingsError("prodigy finds one rate for all that is trained: leave word_learning_rate out, or choose another optimizer")
    told = [COST.format(encoders="T5 and CLIP" if config.word_t5 else "CLIP")]
    told += [(CARRIED_FUSED if facts.fuses else CARRIED).format(words=" and ".join(config.new_words))]
    if others and not config.word_t5:
        told.append("new_words: T5 reads them as they are spelled, only CLIP gets vectors; word_t5 gives it some too, at the price of T5 in memory")
    return tuple(told)


def says(caption: str, word: str) -> bool:
    """Whether a caption holds the word as such."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption, re.IGNORECASE) is not None


def rate(config: TrainConfig) -> float:
    """Share of the run's learning rate that the vectors move at."""
    if config.word_learning_rate is not None:
        return config.word_learning_rate / (config.learning_rate or 1.0)
    return 1.0 if config.optimizer == "prodigy" else FASTER


def _clips(facts: Facts) -> list[str]:
    """Encoders that files call clip_l and clip_g."""
    return [part for part, named in facts.words.items() if named[0].startswith("clip")]
