"""Civitai's numbers out of side files: those of download managers are read, those of another file are not believed."""

import json
from pathlib import Path

import pytest

from studio.library import civitai
from studio.library.civitai import Card

ANSWER = {"id": 128713, "modelId": 101055, "trainedWords": ["zqx style", 7], "files": [{"hashes": {"SHA256": "AB" * 32, "AutoV3": "CD" * 6}}, "odd"]}


@pytest.mark.parametrize(
    ("told", "card"),
    [
        (ANSWER, Card(128713, 101055, ("zqx style",), frozenset({"ab" * 32, "cd" * 6}))),  # Civitai Helper keeps the site's answer
        ({"file_name": "ink", "civitai": {**ANSWER, "files": []}}, Card(128713, 101055, ("zqx style",))),  # LoRA Manager
        ({"modelId": 5, "modelVersionId": "77", "description": "x"}, Card(77, 5)),
        ({"civitai": {}, "id": 3}, None),
        ({"id": 128713}, None),  # an id of anything
        ({"activation text": "zqx", "preferred weight": 0.8}, None),  # the card of A1111
        ({"modelVersionId": True}, None),
        ({"modelVersionId": -4}, None),
        ([1], None),
    ],
)
def test_side_files_name_a_version_or_nothing(told: object, card: Card | None) -> None:
    assert civitai.read(json.dumps(told).encode()) == card
    assert civitai.read(json.dumps(told).encode()[:-1] + b"\xff") is None


def test_a_card_is_about_the_file_whose_hash_it_has() -> None:
    card = civitai.read(json.dumps(ANSWER).encode())
    assert card is not None and card.about("ab" * 32, "") and card.about("", "cd" * 32)
    assert not card.about("00" * 32, "ef" * 32)
    assert Card(1).about("00" * 32, ""), "one without hashes is believed"


def test_the_number_lies_beside_the_adapter(tmp_path: Path) -> None:
    lora = tmp_path / "ink.safetensors"
    assert civitai.beside(lora) is None and civitai.version_of(lora) == 0
    (tmp_path / "ink.json").write_text(json.dumps({"activation text": "zqx"}))
    (tmp_path / "ink.metadata.json").write_text(json.dumps({"civitai": ANSWER}))
    found = civitai.beside(lora)
    assert found is not None and found.version == 128713
    civitai.keep(found, tmp_path)
    assert civitai.version_of(lora) == 128713
    assert [civitai.stem_of(name) for name in ("a.b.civitai.info", "a.metadata.json", "a.json", "a.safetensors")] == ["a.b", "a", "a", ""]
