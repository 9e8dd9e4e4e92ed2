import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.config import LoraWeight
from studio.errors import SettingsError
from studio.generation.prompt import merge, number, parse, stem, tag


def rows(prompt: str) -> dict[str, float]:
    return {row.name: row.weight for row in parse(prompt).loras}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<lora:ink:0.8>", {"ink": 0.8}),
        ("<lora:ink>", {"ink": 1.0}),
        ("<LoRA: my style : .5 >", {"my style": 0.5}),
        ("<lora:ink:-0.5>", {"ink": -0.5}),
        ("<lora:ink:0.7:0.7>", {"ink": 0.7}),
        ("<lora:ink:te=0.4:unet=0.4>", {"ink": 0.4}),
        ("<lora:ink:0.4:unet=0.4>", {"ink": 0.4}),
        ("<lyco:ink:0.3>", {"ink": 0.3}),
        ("<lora:sub/ink.v2:1>", {"sub/ink.v2": 1.0}),
        ("a <lora:ink:0.25> b <lora:wash:1> c <lora:ink:0.5>", {"ink": 0.75, "wash": 1.0}),
    ],
)
def test_tags_name_adapters_and_weights(prompt: str, expected: dict[str, float]) -> None:
    assert rows(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("cat <lora:a:1>", "cat"),
        ("<lora:a:1> cat", "cat"),
        ("<lora:a:1>, cat", "cat"),
        ("cat, <lora:a:1>", "cat"),
        ("cat, <lora:a:1>, blue", "cat, blue"),
        ("cat <lora:a:1>, blue", "cat, blue"),
        ("cat<lora:a:1>fish", "cat fish"),
        ("cat <lora:a:1> fish <lora:b:1>.", "cat fish."),
        ("cat\n<lora:a:1>\nfish", "cat\n\nfish"),
        ("<lora:a:1>", ""),
    ],
)
def test_a_tag_leaves_no_gap(prompt: str, text: str) -> None:
    assert parse(prompt).text == text


@given(st.text().filter(lambda text: not any(f"<{kind}:" in text.lower() for kind in ("lora", "lyco", "hypernet"))))
def test_a_prompt_without_tags_stays_as_it_is(text: str) -> None:
    assert parse(text).text == text
    assert parse(text).loras == ()


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("<lora:ink:strong>", "'strong', which is no number"),
        ("<lora:>", "names no LoRA"),
        ("<lora::0.5>", "names no LoRA"),
        ("<lora:ink:0.5:0.8>", "two weights"),
        ("<lora:ink:te=0.1:unet=0.2>", "two weights"),
        ("<lora:ink:1:dyn=4>", "dyn="),
        ("<lora:ink:1:1:4>", "3 weights"),
        ("<hypernet:ink:1>", "hypernetwork"),
        ("<lora:ink:11>", "less than or equal to 10"),
        ("<lora:ink:nan>", "weight"),
        ("<lora:ink:9><lora:ink:9>", "less than or equal to 10"),
    ],
)
def test_a_tag_that_means_something_else_is_one_line(prompt: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        parse(prompt)
    assert "\n" not in str(caught.value)


def test_rows_win_over_the_prompt_and_both_are_listed() -> None:
    form = [LoraWeight(name="folder/ink.safetensors", weight=0.2), LoraWeight(name="wash", weight=0)]
    spoken = parse("<lora:ink:1><lora:fox:0.5><lora:wash:1>").loras
    assert [(row.name, row.weight) for row in merge(form, spoken)] == [("folder/ink.safetensors", 0.2), ("wash", 0.0), ("fox", 0.5)]


@given(st.floats(-10, 10))
def test_a_written_tag_reads_back(weight: float) -> None:
    found = parse(tag("ink", weight)).loras
    assert abs(found[0].weight - weight) <= 5e-7
    assert "e" not in number(weight)


def test_the_stem_of_a_file_is_its_name() -> None:
    assert stem("C:\\loras\\ink.v2.safetensors") == "ink.v2" == stem("/loras/ink.v2.safetensors") == stem("ink.v2")
