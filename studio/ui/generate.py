"""The Generate view: settings with the LoRA stack, the picture, recent pictures, facts."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from studio.config import GenerateConfig, build
from studio.config.generating.enlarging import Enlarging
from studio.config.generating.presets import OWN
from studio.ui.commands import Reply, Values, connect
from studio.ui.components import slot, splitter
from studio.ui.forms import Form, widget
from studio.workspace import Workspace

RECALLED = {"seed": ("seed",), "prompt": ("prompt", "negative_prompt")}
IN_SCRIPTS = ("loras", "init_image", "mask", "grid")  # chosen in our own parts of the page, not in widgets
FOLDS: dict[str, tuple[str, ...]] = {
    "Larger": tuple(Enlarging.model_fields),
    "Variation": ("variation_seed", "variation_strength"),
    "Advanced": (
        *("sampler", "guidance_rescale", "true_cfg", "batch", "stack_mode", "speed", "first_block_cache"),
        *("format", "quality", "live_preview", "precision", "vae", "encoders"),
    ),
}


def generate_view(workspace: Workspace) -> None:
    """Place the parts and connect the form."""
    with gr.Column(elem_id="view-generate", elem_classes="st-view"):
        with gr.Column(elem_id="generate-form", elem_classes="st-formpanel"):
            slot("heading.js", "generate-heading", options={"title": "Generate", "form": "generate", "presets": True})
            with gr.Column(elem_classes="st-formscroll"):
                form = _form(
                    [base.name for base in workspace.bases.list()], list(dict.fromkeys(name for names in workspace.bases.samplers().values() for name in names))
                )
            slot("generate.js", "generate-foot")
        splitter("controls", "Width of the settings", initial=372, limits=(300, 640), side=1)
        slot("viewer.js", "generate-viewer")
        splitter("strip", "Height of the recent pictures", initial=112, limits=(80, 320), side=-1, axis="y")
        slot("gallery.js", "generate-gallery")
        splitter("facts", "Width of the facts", initial=316, limits=(220, 520), side=-1)
        slot("facts.js", "generate-facts")
    commands = {"start": _start(workspace), "recall": _recall(form), "insert": _insert(form), "withdraw": _withdraw(form)}
    connect(workspace, form, {**commands, "preset": _preset(workspace, form), "given": _given})


def _form(bases: list[str], samplers: Sequence[str] = ()) -> Form:
    widgets: dict[str, Any] = {}
    choices = {"base": bases, "sampler": samplers}

    def place(*names: str) -> None:
        with gr.Column(elem_classes="st-fields"):
            for name in names:
                widgets[name] = widget(GenerateConfig, name, choices.get(name))

    def fold(title: str, names: tuple[str, ...], script: str = "") -> None:
        id = f"generate-{title.split()[-1].lower()}"
        slot("heading.js", f"{id}-fold", mount="mountFold", options={"title": title, "folds": id})
        with gr.Column(elem_id=id, elem_classes="st-advanced"):
            if script:
                slot(script, f"{id}-part")
            if names:
                place(*names)

    place("prompt", "negative_prompt")
    slot("stack.js", "generate-stack")
    place("base")
    slot("generate.js", "generate-shapes", mount="mountShapes")
    place("width", "height", "steps", "guidance", "count", "seed")
    slot("generate.js", "generate-seed", mount="mountSeed")
    fold("From a picture", ("strength", "mask_blur"), "source.js")
    for title, names in FOLDS.items():
        if title == "Advanced":
            fold("X/Y/Z grid", (), "axes.js")
        fold(title, names)
    return Form(GenerateConfig, widgets)


def _start(workspace: Workspace) -> Any:
    def start(settings: Values, payload: Values) -> Reply:
        chosen = {name: payload[name] for name in IN_SCRIPTS if payload.get(name)}
        return workspace.jobs.generate(build(GenerateConfig, {**settings, **chosen})), {}

    return start


def _recall(form: Form) -> Any:
    def recall(_: Values, payload: Values) -> Reply:
        """Settings of a picture, or the part of them that is asked for; count stays, since the seed names one picture."""
        settings = build(GenerateConfig, payload["settings"]).model_dump()
        part = payload.get("part", "all")
        names = RECALLED.get(part) or [name for name in settings if name not in ("count", *IN_SCRIPTS)]
        return None, form.show({name: settings[name] for name in names} | ({"count": 1} if part == "all" else {}))

    return recall


def _insert(form: Form) -> Any:
    def insert(settings: Values, payload: Values) -> Reply:
        """A trigger word at the front of the prompt, unless it is there; says whether it was put there."""
        prompt, word = settings.get("prompt", ""), str(payload["text"]).strip()
        if not word or word.lower() in prompt.lower():
            return False, {}
        return True, form.show({"prompt": f"{word}, {prompt}" if prompt else word})

    return insert


def _withdraw(form: Form) -> Any:
    def withdraw(settings: Values, payload: Values) -> Reply:
        """A trigger word out of the prompt, where it stands between commas by itself."""
        parts = settings.get("prompt", "").split(",")
        word = str(payload["text"]).strip().lower()
        at = next((i for i, part in enumerate(parts) if part.strip().lower() == word), None)
        if at is None:
            return None, {}
        return None, form.show({"prompt": ",".join(parts[:at] + parts[at + 1 :]).strip(" ")})

    return withdraw


def _preset(workspace: Workspace, form: Form) -> Any:
    def preset(settings: Values, payload: Values) -> Reply:
        """The words and settings of a preset over what the form holds."""
        chosen = workspace.presets.show(str(payload["name"]))
        words = chosen.applied({name: settings.get(name, "") for name in ("prompt", "negative_prompt")})
        return chosen.model_dump(mode="json"), form.show(words)

    return preset


def _given(settings: Values, _: Values) -> Reply:
    """The settings that say something of their own, as a preset may keep them."""
    known = GenerateConfig.model_fields
    return {name: value for name, value in settings.items() if name not in OWN and value != known[name].get_default()}, {}
