"""Pictures and bases that some cases of the matrix need, made from the sample sets and the demo bases."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from PIL import Image

from studio.families.base import Base

SETS = Path(__file__).resolve().parents[2] / "assets" / "sets"


def masked(source: Path, folder: Path) -> Path:
    """The set with masks that show the middle of each picture."""
    if not folder.is_dir():
        shutil.copytree(source, folder)
        for path in [*folder.glob("[0-9]*.png")]:
            with Image.open(path) as picture:
                width, height = picture.size
            mask = Image.new("L", (width, height), 0)
            mask.paste(255, (width // 8, height // 8, width - width // 8, height - height // 8))
            mask.save(folder / f"{path.stem}-masklabel.png")
    return folder


def pairs(folder: Path) -> Path:
    """Pairs of which the woodcut is better than the blueprint."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        listed = []
        for better, worse in zip(sorted((SETS / "woodcut").glob("*.png")), sorted((SETS / "blueprint").glob("*.png")), strict=True):
            with Image.open(better) as one, Image.open(worse) as other:
                one.convert("RGB").resize((128, 128)).save(folder / f"{better.stem}-a.png")
                other.convert("RGB").resize((128, 128)).save(folder / f"{better.stem}-b.png")
            shutil.copy(better.with_suffix(".txt"), folder / f"{better.stem}-a.txt")
            listed.append({"better": f"{better.stem}-a.png", "worse": f"{better.stem}-b.png"})
        (folder / "pairs.json").write_text(json.dumps(listed))
    return folder


def velocity(base: Base, folder: Path) -> Base:
    """The base read as if it predicted velocity: wrong at first, which is what training mends."""
    if not folder.is_dir():
        shutil.copytree(base.path, folder)
        config = folder / "scheduler" / "scheduler_config.json"
        config.write_text(config.read_text().replace('"epsilon"', '"v_prediction"'))
    return replace(base, name="velocity", path=folder, habits={**base.habits, "objective": "v"})
