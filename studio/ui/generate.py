"""The Generate view: settings with the LoRA stack, the picture, recent pictures, facts."""

from typing import Any

import gradio as gr

from studio.config import GenerateConfig, build
from studio.ui.commands import Reply, Values, connect
from studio.ui.components import slot, splitter
from studio.ui.forms import Form, widget
from studio.workspace import Workspace

RECALLED = {"seed": ("seed",), "prompt": ("prompt", "negative_prompt")}


def generate_view(workspace: Workspace) -> None:
    """Place the parts and connect the form."""
    with gr.Column(elem_id="view-generate", elem_classes="st-view"):
        with gr.Column(elem_id="generate-form", elem_classes="st-formpanel"):
            slot("heading.js", "generate-heading", options={"title": "Generate", "form": "generate"})
            with gr.Column(elem_classes="st-formscroll"):
                form = _form([base.name for base in workspace.bases.list()])
            slot("generate.js", "generate-foot")
        splitter("controls", "Width of the settings", initial=372, limits=(300, 640), side=1)
        slot("viewer.js", "generate-viewer")
        splitter("strip", "Height of the recent pictures", initial=112, limits=(80, 320), side=-1, axis="y")
        slot("gallery.js", "generate-gallery")
        splitter("facts", "Width of the facts", initial=316, limits=(220, 520), side=-1)
        slot("facts.js", "generate-facts")
    connect(workspace, form, {"start": _start(workspace), "recall": _recall(form), "insert": _insert(form)})


def _form(bases: list[str]) -> Form:
    widgets: dict[str, Any] = {}

    def place(*names: str) -> None:
        with gr.Column(elem_classes="st-fields"):
            for name in names:
                widgets[name] = widget(GenerateConfig, name, bases if name == "base" else None)

    place("prompt", "negative_prompt")
    slot("stack.js", "generate-stack")
    place("base")
    slot("generate.js", "generate-shapes", mount="mountShapes")
    place("width", "height", "steps", "guidance", "count", "seed")
    slot("generate.js", "generate-seed", mount="mountSeed")
    slot("heading.js", "generate-fold", mount="mountFold", options={"title": "Advanced", "folds": "generate-advanced"})
    with gr.Column(elem_id="generate-advanced", elem_classes="st-advanced"):
        place("sampler", "batch", "stack_mode", "speed", "precision", "vae", "encoders")
    return Form(GenerateConfig, widgets)


def _start(workspace: Workspace) -> Any:
    def start(settings: Values, payload: Values) -> Reply:
        return workspace.jobs.generate(build(GenerateConfig, {**settings, "loras": payload["loras"]})), {}

    return start


def _recall(form: Form) -> Any:
    def recall(_: Values, payload: Values) -> Reply:
        """Settings of a picture, or the part of them that is asked for; count stays, since the seed names one picture."""
        settings = build(GenerateConfig, payload["settings"]).model_dump()
        part = payload.get("part", "all")
        names = RECALLED.get(part) or [name for name in settings if name not in ("count", "loras")]
        return None, form.show({name: settings[name] for name in names} | ({"count": 1} if part == "all" else {}))

    return recall


def _insert(form: Form) -> Any:
    def insert(settings: Values, payload: Values) -> Reply:
        """A trigger word at the front of the prompt, unless it is there."""
        prompt, word = settings.get("prompt", ""), str(payload["text"]).strip()
        if not word or word.lower() in prompt.lower():
            return None, {}
        return None, form.show({"prompt": f"{word}, {prompt}" if prompt else word})

    return insert
