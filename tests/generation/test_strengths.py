import re

import pytest

from studio.config import GenerateConfig, LoraWeight, build
from studio.errors import SettingsError
from studio.families import get
from studio.generation.strengths import at, check, constant, on_path, position
from studio.jobs.spec import MergeConfig

ROWS = [
    "ink",
    "ink=0.8",
    "dir/a=1/b.safetensors",
    "a=1,b=2/c.safetensors=0.5",
    "ink=-1.5,text=0",
    "ink=1,text=0.4,input=0,output.1=0.5,output.0-2=0.25,curve=1@0/0.5@0.6/0@1",
]


@pytest.mark.parametrize("text", ROWS)
def test_a_row_is_read_as_it_is_written(text: str) -> None:
    row = LoraWeight.parse(text)
    assert LoraWeight.parse(str(row)) == row == build(LoraWeight, row.model_dump(mode="json"))


def test_names_may_hold_the_signs_of_the_syntax() -> None:
    assert LoraWeight.parse("a=1,b=2/c.safetensors=0.5") == LoraWeight(name="a=1,b=2/c.safetensors", weight=0.5)
    assert LoraWeight.parse("ink=1,text=0.25,single.20-37=0.5,curve=1@0/0@1") == LoraWeight(
        name="ink", weight=1, text_weight=0.25, blocks={"single.20-37": 0.5}, schedule=((0, 1), (1, 0))
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ink=1,curve=1@2", "less than or equal to 1"),
        ("ink=1,curve=up", "write FACTOR@POSITION"),
        ("ink=1,curve=1@0.5/0@0.5", "positions must rise"),
        ("ink=1,input=much", "blocks.input 'much'"),
        ("ink=1,text=", "text_weight ''"),
    ],
)
def test_what_is_no_strength_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)) as caught:
        build(GenerateConfig, {"loras": [text]})
    assert "\n" not in str(caught.value)


def test_files_hold_one_number_a_row() -> None:
    with pytest.raises(SettingsError, match="ink has strengths by part"):
        build(MergeConfig, {"loras": ["ink=1,text=0"]})


def test_a_layer_takes_the_strength_of_its_part_and_of_its_narrowest_block() -> None:
    sdxl, flux = get("sdxl").facts, get("flux").facts
    row = LoraWeight.parse("ink=2,text=0.5,output=0.5,output.0=0.25,middle=0")
    assert on_path(row, "text_encoder_2.text_model.encoder.layers.0.mlp.fc1", sdxl) == 0.5
    assert on_path(row, "unet.up_blocks.1.resnets.0.conv1", sdxl) == 1
    assert on_path(row, "unet.up_blocks.0.resnets.0.conv1", sdxl) == 0.5
    assert on_path(row, "unet.mid_block.resnets.0.conv1", sdxl) == 0
    assert on_path(row, "unet.down_blocks.1.resnets.0.conv1", sdxl) == on_path(row, "unet.conv_in", sdxl) == 2
    row = LoraWeight.parse("ink=1,single=0.5,single.20-37=0.25,single.3=4,double=3")
    found = [on_path(row, f"transformer.single_transformer_blocks.{i}.attn.to_q", flux) for i in (2, 3, 20, 37)]
    assert found == [0.5, 4, 0.25, 0.25] and on_path(row, "transformer.transformer_blocks.20.attn.to_q", flux) == 3


def test_blocks_that_the_family_does_not_have_are_refused() -> None:
    with pytest.raises(SettingsError, match="no blocks 'single'; its groups are input, middle, output"):
        check(LoraWeight.parse("ink=1,single.3=0"), get("sdxl").facts)
    with pytest.raises(SettingsError, match="middle is one block"):
        check(LoraWeight.parse("ink=1,middle.0=0"), get("sdxl").facts)
    check(LoraWeight.parse("ink=1,single.3=0,double.0-18=1"), get("flux").facts)


def test_a_schedule_is_straight_between_its_points_and_level_outside() -> None:
    points = ((0.25, 1.0), (0.75, 0.0))
    assert [at(points, share) for share in (0, 0.25, 0.5, 0.75, 1)] == [1, 1, 0.5, 0, 0]
    assert at((), 0.3) == 1
    assert [position(step, 5) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1] and position(0, 1) == 0


def test_a_level_schedule_is_a_weight_and_leaves_the_text_encoders_alone() -> None:
    assert constant(LoraWeight.parse("ink=0.8,curve=1@0/1@1")) == LoraWeight(name="ink", weight=0.8)
    assert constant(LoraWeight.parse("ink=0.8,curve=0.5@0.2")) == LoraWeight(name="ink", weight=0.4, text_weight=0.8)
    moving = LoraWeight.parse("ink=0.8,curve=1@0/0@1")
    assert constant(moving) is moving
