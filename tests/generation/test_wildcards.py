"""Prompts that are drawn: by the seed alone, from the folder alone."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.config import GenerateConfig
from studio.errors import SettingsError
from studio.events import Image, Warned
from studio.families.base import Components
from studio.generation import wildcards
from studio.generation.sampler import generate
from tests.generation.conftest import Asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "wildcards"
    (place / "animals").mkdir(parents=True)
    (place / "colour.txt").write_text("# colours\nred\n\nblue\n", encoding="utf-8")
    (place / "animals" / "pet.txt").write_text("{small|large} __colour__ cat\n", encoding="utf-8")
    (place / "loop.txt").write_text("__loop__", encoding="utf-8")
    (place / "empty.txt").write_text("# nothing\n", encoding="utf-8")
    (place / "tag.txt").write_text("<lora:ink:1>", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    (place / "link.txt").symlink_to(tmp_path / "secret.txt")
    return place


def drawn(prompt: str, folder: Path | None = None, n: int = 300) -> Counter:
    return Counter(wildcards.resolve(prompt, seed, folder) for seed in range(n))


def test_a_seed_draws_one_prompt_and_all_choices_come(folder: Path) -> None:
    found = drawn("a {red|blue} __animals/pet__", folder)
    assert set(found) == {f"a {a} {size} {b} cat" for a in ("red", "blue") for b in ("red", "blue") for size in ("small", "large")}
    assert wildcards.resolve("{a|b|c}", 7, None) == wildcards.resolve("{a|b|c}", 7, None)
    assert wildcards.resolve("plain (cat:1.2)", 7, None) == "plain (cat:1.2)"


def test_shares_counts_and_nesting() -> None:
    shares = drawn("{3::a|b}", n=2000)
    assert 0.68 < shares["a"] / 2000 < 0.82
    assert set(drawn("{2$$a|b|c}")) == {f"{x}, {y}" for x in "abc" for y in "abc" if x != y}
    assert set(drawn("{1-2$$ and $$a|b}")) == {"a", "b", "a and b", "b and a"}
    assert set(drawn("{x {1|2}|y}")) == {"x 1", "x 2", "y"}
    assert set(drawn("{a|}!")) == {"a!", "!"}


@pytest.mark.parametrize("name", ["../secret", "link", "animals/../../secret", "/etc/passwd", ".hidden", "absent", "animals"])
def test_no_name_leads_out_of_the_folder(folder: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="there is no wildcard"):
        wildcards.choices(name, folder)
    assert wildcards.names(folder) == ["animals/pet", "colour", "empty", "loop", "tag"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("__absent__", "no wildcard __absent__"),
        ("__loop__", "names itself|name itself"),
        ("__empty__", "no choices"),
        ("{a|b", "nothing closes"),
        ("__tag__", "LoRA tag"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(folder: Path, prompt: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        wildcards.resolve(prompt, 1, folder)
    assert "\n" not in str(caught.value)


@settings(max_examples=200)
@given(st.text(alphabet="ab{}|$1-2:_ ", max_size=40), st.integers(0, 9))
def test_any_text_ends_in_a_prompt_or_a_line(text: str, seed: int) -> None:
    try:
        found = wildcards.resolve(text, seed, None)
    except SettingsError as error:
        assert "\n" not in str(error)
    else:
        assert not {"{"} & set(found)


def test_every_picture_draws_its_own_and_records_what_was_drawn(c: Components, tmp_path: Path, folder: Path) -> None:

    config = GenerateConfig(
        base=c.base.name, prompt="a {red|blue|green|pink} __animals/pet__", negative_prompt="{x|y}", seed=3, count=4, steps=1, width=64, height=64
    )
    events = list(generate(c, [], config, tmp_path, requests=Asked(), names=[], files={"wildcards": folder}))
    pictures = [event.settings for event in events if isinstance(event, Image)]
    expected = [(wildcards.resolve(config.prompt, seed, folder), wildcards.resolve("{x|y}", seed, folder)) for seed in range(3, 7)]
    assert [(one["prompt"], one["negative_prompt"]) for one in pictures] == expected and len({prompt for prompt, _ in expected}) > 1
    assert not [event for event in events if isinstance(event, Warned) and "wildcard" in event.message]
