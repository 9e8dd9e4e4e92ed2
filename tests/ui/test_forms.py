import re

import gradio as gr
import pytest

from studio.config import GenerateConfig, Settings, TrainConfig, build
from studio.families import sources
from studio.ui import generate, train
from studio.ui.forms import EMPTY, LINES, WIDE, Form, widget
from studio.workspace.plans import defaults

# Chosen elsewhere on the page, or for the command line alone.
ELSEWHERE = {TrainConfig: {"images", "output"}, GenerateConfig: {"loras", "init_image", "mask", "grid"}}


def form(kind: type[Settings]) -> Form:
    with gr.Blocks():
        return train._form(["demo-sdxl"]) if kind is TrainConfig else generate._form(["demo-sdxl"], ["Euler"])


@pytest.mark.parametrize("kind", [TrainConfig, GenerateConfig])
def test_every_setting_has_a_widget_with_its_help(kind: type[Settings]) -> None:
    made = form(kind)
    assert set(made.names) == set(kind.model_fields) - ELSEWHERE[kind]
    assert all(widget.info.startswith(kind.model_fields[name].description) for name, widget in made.widgets.items())
    assert len({widget.elem_id for widget in made.widgets.values()}) == len(made.widgets)


def test_a_field_of_several_lines_has_its_row_to_itself() -> None:
    """The page aligns the lower ends of neighbours, which would shift the label of the taller one up."""
    assert set(LINES) <= WIDE


@pytest.mark.parametrize(("kind", "needed"), [(TrainConfig, {"images": "x"}), (GenerateConfig, {})])
def test_an_untouched_form_means_the_defaults(kind: type[Settings], needed: dict[str, str]) -> None:
    made = form(kind)
    read = made.values({widget: widget.value for widget in made.widgets.values()})
    expected = build(kind, {**needed, **({"sample_every": 50} if kind is TrainConfig else {})})
    assert build(kind, {**needed, **read}) == expected


def test_settings_go_into_widgets_and_come_back_the_same() -> None:
    made = form(TrainConfig)
    config = build(
        TrainConfig,
        {"images": "x", "learning_rate": 1e-4, "rank": 8, "flip": True, "gradient_checkpointing": False, "sample_prompts": ["a", "b"], "seed": 2**62 + 1},
    )
    shown = {widget: update["value"] for widget, update in made.show(config.model_dump()).items()}
    shown[made.widgets["gradient_checkpointing"]] = "off"
    assert build(TrainConfig, {"images": "x", **made.values(shown)}) == config


def test_text_in_a_number_is_refused_by_the_settings_class_by_name() -> None:
    made = form(GenerateConfig)
    given = {widget: widget.value for widget in made.widgets.values()} | {made.widgets["guidance"]: " much "}
    with pytest.raises(Exception, match="guidance 'much'"):
        build(GenerateConfig, made.values(given))


@pytest.mark.parametrize(
    ("kind", "name", "ends"),
    [
        (TrainConfig, "rank", "(1 to 512)"),
        (TrainConfig, "learning_rate", "(above 0, up to 10)"),
        (TrainConfig, "save_every", "(0 or more)"),
        (GenerateConfig, "seed", "(-1 or more)"),
    ],
)
def test_help_names_the_range(kind: type[Settings], name: str, ends: str) -> None:
    assert widget(kind, name).info.endswith(ends)


def test_empty_widgets_show_what_the_base_takes() -> None:
    made = form(GenerateConfig)
    shown = {name: update["placeholder"] for name, w in made.widgets.items() if (update := made.placeholders({"steps": 20, "guidance": 4.0}).get(w))}
    assert (shown["steps"], shown["guidance"], shown["width"], shown["hires_scale"]) == ("20", "4", "auto", "off")
    assert "prompt" not in shown


CHOSEN = {"block_offload"}  # empty means that the studio looks and decides: the only ones that may say "auto" under every base


@pytest.mark.parametrize("kind", [TrainConfig, GenerateConfig])
def test_an_empty_box_says_what_its_explanation_says(kind: type[Settings]) -> None:
    """Off is "off" and never is "never", whatever base is chosen; what only a base knows is "auto" until one is."""
    made = form(kind)
    base = sources.find("demo-sdxl")
    known = {name for source in defaults(base, kind.__name__.removesuffix("Config").lower()) for name in source}
    shown = {name: w.placeholder for name, w in made.widgets.items() if isinstance(w, gr.Textbox) and w.placeholder}
    assert {name for name, words in shown.items() if words == "auto"} <= known | CHOSEN
    for name, words in shown.items():
        said = (kind.model_fields[name].description or "").lower()
        assert ("empty is off" in said) == (words == "off"), name
        assert words == "never" or not re.search(r"empty (is )?never", said), name
    assert not EMPTY.keys() - TrainConfig.model_fields.keys() - GenerateConfig.model_fields.keys()
    assert not EMPTY.keys() & known, "a base says these"


def test_a_choice_that_is_left_open_says_so_and_stays_open() -> None:
    made = form(TrainConfig)
    widget = made.widgets["timestep_sampling"]
    assert widget.value == "" and widget.choices[0] == ("As it comes", "")
    assert made.show({"timestep_sampling": None})[widget]["value"] == ""
    assert "timestep_sampling" not in made.values({one: one.value for one in made.widgets.values()})
