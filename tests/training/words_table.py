"""Train with a plain trigger, with a new word, and a new word alone for as many steps, and print what each was worth.

    python -m tests.training.words_table

Settings, seed, noise and held-out pictures are those of networks_table. Held-out losses are shown as they are: another word in the
captions is another loss of the base.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from .networks_table import BASES, STEPS, measured

INIT = {"word_init": "black white picture"}
ROWS: dict[str, dict[str, Any]] = {
    "a trigger of ordinary letters": {},
    "a new word, from noise": {"new_words": "zib"},
    "a new word, from *black white picture*": {"new_words": "zib", **INIT},
    "the same, stopped at half of the steps": {"new_words": "zib", **INIT, "word_stop": STEPS // 2},
    "the same in T5 too": {"new_words": "zib", **INIT, "word_t5": True},
    "the word alone, `network none`": {"new_words": "zib", **INIT, "network": "none", "word_learning_rate": 1e-2},
}


def main() -> None:
    torch.set_num_threads(1)
    print("| trained | " + " | ".join(BASES) + " |\n| --- |" + " --- |" * len(BASES))
    with tempfile.TemporaryDirectory() as name:
        for title, settings in ROWS.items():
            cells = []
            for base in BASES:
                if settings.get("word_t5") and base == "demo-sdxl":
                    cells.append("-")
                    continue
                found = measured(base, {"trigger": "zib", **settings}, STEPS, Path(name) / f"{title[:30]} {base}".replace("*", ""), Path(name) / "cache")
                cells.append(f"{found['before']:.3f} to {found['after']:.3f}")
            print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
