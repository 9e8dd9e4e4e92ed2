"""The Train view: pictures, settings, the run."""

from typing import Any

import gradio as gr

from studio.config import BaseChoice, TrainConfig, build, safe_stem
from studio.config.recipes import find, fits, recipes
from studio.ui.commands import Reply, Values, connect
from studio.ui.components import slot, splitter
from studio.ui.forms import Form, choices_of, label_of, widget
from studio.workspace import Workspace
from studio.workspace.fitting import CARDS

SIMPLE = ("base", "name", "trigger", "steps", "resolution", "rank", "learning_rate", "sample_every", "save_every", "sample_prompts")
STARTS_WITH = {"sample_every": "50"}  # whoever watches wants to see something; the command line makes none unless asked
ELSEWHERE = {"images", "output"}  # chosen beside the form, or for the command line alone
OFTEN_SWEPT = ("learning_rate", "rank", "steps", "network", "optimizer", "lr_schedule", "alpha", "resolution", "batch_size")
ADVANCED = {group.TITLE: [name for name in group.model_fields if name not in (*SIMPLE, *ELSEWHERE)] for group in TrainConfig.GROUPS}


def train_view(workspace: Workspace) -> None:
    """Place the parts and connect the form."""
    with gr.Column(elem_id="view-train", elem_classes="st-view"):
        slot("sets.js", "train-pictures")
        splitter("pictures", "Width of the pictures", initial=316, limits=(240, 620), side=1)
        with gr.Column(elem_id="train-form", elem_classes="st-formpanel"):
            slot("heading.js", "train-heading", options={"title": "Settings", "form": "train"})
            with gr.Column(elem_classes="st-formscroll"):
                slot("recipes.js", "train-recipe", options={"recipes": [{"name": one.name, "title": one.title, "about": one.about} for one in recipes()]})
                slot("search.js", "train-search", options={"form": "train-form", "folds": "train-advanced", "fold": "train-fold"})
                form = _form([base.name for base in workspace.bases.list()])
            slot("fits.js", "train-fits", options={"cards": list(CARDS)})
            slot("train.js", "train-foot", options={"settings": swept()})
        splitter("settings", "Width of the settings", initial=352, limits=(280, 620), side=1)
        slot("run.js", "train-run")
    commands = {"start": _start(workspace), "sweep": _sweep(workspace), "choose_set": _choose_set(form), "continue_from": _continue_from(workspace, form)}
    connect(workspace, form, {**commands, "fits": _fits(workspace), "recipe": _recipe(workspace, form)})


def _form(bases: list[str]) -> Form:
    widgets: dict[str, Any] = {}

    def place(name: str) -> None:
        widgets[name] = widget(TrainConfig, name, bases if name == "base" else None)
        widgets[name].value = STARTS_WITH.get(name, widgets[name].value)

    with gr.Column(elem_classes="st-fields"):
        for name in SIMPLE:
            place(name)
    slot("heading.js", "train-fold", mount="mountFold", options={"title": "Advanced", "folds": "train-advanced"})
    with gr.Column(elem_id="train-advanced", elem_classes="st-advanced"):
        for title, names in ADVANCED.items():
            if not names:
                continue
            gr.HTML(f"<h4>{title}</h4>", elem_classes="st-grouptitle", apply_default_css=False)
            with gr.Column(elem_classes="st-fields"):
                for name in names:
                    place(name)
    return Form(TrainConfig, widgets)


def _start(workspace: Workspace) -> Any:
    def start(settings: Values, payload: Values) -> Reply:
        job = workspace.jobs.train(build(TrainConfig, {**settings, "images": payload["images"]}))
        return {"id": job.id}, {}

    return start


def swept() -> list[dict[str, str]]:
    """What a sweep may go over: names, labels, and what a value looks like; the usual ones first."""
    names = [*OFTEN_SWEPT, *(name for name in TrainConfig.model_fields if name not in (*OFTEN_SWEPT, *ELSEWHERE, "name"))]
    return [{"name": name, "label": label_of(name), "values": ", ".join(choices_of(TrainConfig, name))} for name in names]


def _sweep(workspace: Workspace) -> Any:
    def sweep(settings: Values, payload: Values) -> Reply:
        """One run for every combination of values; the first of them."""
        jobs = workspace.sweeps.submit(build(TrainConfig, {**settings, "images": payload["images"]}), [str(row) for row in payload["over"]])
        return {"id": jobs[0].id, "n": len(jobs)}, {}

    return sweep


def _fits(workspace: Workspace) -> Any:
    def fits(settings: Values, payload: Values) -> Reply:
        """What a run with these settings would take of a card."""
        images = payload.get("images")
        config = build(TrainConfig, {**settings, "images": images or "none yet"})
        return workspace.fitting.plan(config, payload.get("card"), counted=bool(images)), {}

    return fits


def _recipe(workspace: Workspace, form: Form) -> Any:
    def recipe(settings: Values, payload: Values) -> Reply:
        """The settings of a recipe into their widgets; what it says nothing of stays."""
        found = find(payload["name"])
        base = workspace.bases.resolve(BaseChoice(base=settings.get("base", form.kind.model_fields["base"].default)))
        fits(found, base.family, base.name)
        length = {"epochs": None} if "steps" in found.settings else {"steps": None} if "epochs" in found.settings else {}
        return {"why": dict(found.why)}, form.show({**length, **found.settings})

    return recipe


def _choose_set(form: Form) -> Any:
    def choose_set(settings: Values, payload: Values) -> Reply:
        """The set's trigger, and a name after it."""
        return None, form.show({"name": safe_stem(payload["name"]), "trigger": payload["trigger"]})

    return choose_set


def _continue_from(workspace: Workspace, form: Form) -> Any:
    def continue_from(settings: Values, payload: Values) -> Reply:
        adapter = workspace.library.show(payload["name"])
        values = {"start_from": adapter.name, "name": f"{adapter.name[:95]}-on", "trigger": adapter.trigger, "rank": adapter.rank or None}
        known = adapter.base in [base.name for base in workspace.bases.list()]
        return (adapter.base if known else ""), form.show({**values, "base": adapter.base} if known else values)

    return continue_from
