"""What scripts can ask of a form: its settings sent to the workspace, or values put into its widgets."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from studio.api.replies import public, without_paths
from studio.config import BaseChoice, Settings, build
from studio.errors import StudioError
from studio.ui.assets import address
from studio.ui.components import bridge
from studio.ui.forms import Form
from studio.workspace import Workspace
from studio.workspace.plans import defaults

log = logging.getLogger("studio.ui")

Values = dict[str, Any]
Reply = tuple[Any, dict[Any, Any]]  # result for the script, updates of widgets
Command = Callable[[Values, Values], Reply]  # (settings as the widgets say, payload)


def act_of(kind: type[Settings]) -> str:
    return kind.__name__.removesuffix("Config").lower()


def connect(workspace: Workspace, form: Form, commands: Mapping[str, Command]) -> None:
    """Give a form its bridge: `commands` plus `fill` and `restore`, the base's habits as placeholders, and values kept in the browser.

    A script asks in two steps: the page gathers what the widgets hold, and sends it along with the command. Were the widgets inputs or
    places of progress of the command itself, Gradio would copy all that every one of them is made of, twice a call.
    """
    act = act_of(form.kind)
    place = bridge(act)
    widgets = list(form.widgets.values())
    known = {**commands, "fill": _fill(form), "restore": _restore(workspace, form), "reset": _reset(workspace, form)}

    def command(evt: gr.EventData) -> dict[Any, Any]:
        number = str(evt.number)
        try:
            settings = form.values({widget: evt.settings.get(name) for name, widget in form.widgets.items()})
            result, updates = known[evt.command](settings, evt.payload or {})
            return {place: {"number": number, "result": public(result)}, **updates}
        except StudioError as error:
            return {place: {"number": number, "error": without_paths(str(error))}}
        except Exception:
            log.exception("command %s of the %s form failed", evt.command, act)
            return {place: {"number": number, "error": "something unexpected went wrong; the studio's terminal says what"}}

    options: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": place, "api_visibility": "private", "queue": False}
    place.command(command, inputs=None, outputs=[place, *widgets], trigger_mode="multiple", **options)

    def base_changed(base: str) -> dict[Any, Any]:
        habits, updates = habits_of(workspace, form, base)
        return {place: {"say": "base-chosen", "detail": {"form": act, "base": base, "habits": habits}}, **updates}

    form.widgets["base"].change(base_changed, inputs=[form.widgets["base"]], outputs=[place, *widgets], **options)
    place.gather(None, inputs=widgets, js=_to_script("gathered", act, form.names), show_progress="hidden")
    gr.on([widget.change for widget in widgets], fn=None, inputs=widgets, js=_to_script("keep", act, form.names), show_progress="hidden")


def _to_script(name: str, act: str, names: list[str]) -> str:
    """A function that hands what the widgets hold to one of form.js."""
    return f"(...values) => {{ import({json.dumps(address('js/form.js'))}).then((m) => m.{name}('{act}', {json.dumps(names)}, values)); return []; }}"


def habits_of(workspace: Workspace, form: Form, base: str) -> tuple[Values, dict[Any, Any]]:
    """What empty settings stand for with this base, and the placeholders that say so; nothing for a base that cannot be found."""
    try:
        found = workspace.bases.resolve(BaseChoice(base=base))
    except (StudioError, ValueError):
        return {}, form.placeholders({})
    own, family = defaults(found, act_of(form.kind))
    habits = {**family, **own}
    return habits, form.placeholders({"alpha": habits.get("rank"), **habits})


def _fill(form: Form) -> Command:
    def fill(_: Values, payload: Values) -> Reply:
        return None, form.show(payload["values"])

    return fill


def _restore(workspace: Workspace, form: Form) -> Command:
    def restore(_: Values, payload: Values) -> Reply:
        """Values of the last visit, as far as they still are settings."""
        kept: Values = {}
        for name, value in (payload.get("values") or {}).items():
            if name in form.widgets and _valid(form, name, value):
                kept[name] = value
        base = kept.get("base") or form.kind.model_fields["base"].default
        habits, updates = habits_of(workspace, form, base)
        shown = form.show(kept)
        merged = {widget: {**updates.get(widget, {}), **shown.get(widget, {})} for widget in {**updates, **shown}}
        return {"base": base, "habits": habits}, merged

    return restore


def _reset(workspace: Workspace, form: Form) -> Command:
    def reset(settings: Values, _: Values) -> Reply:
        """Every widget as it came, but for the base and the prompt."""
        kept = [name for name in ("base", "prompt") if name in form.widgets]
        base = settings.get("base", form.kind.model_fields["base"].default)
        habits, updates = habits_of(workspace, form, base)
        shown = form.show({name: form.kind.model_fields[name].get_default() for name in form.names if name not in kept})
        return {"base": base, "habits": habits}, {widget: {**updates.get(widget, {}), **shown.get(widget, {})} for widget in {**updates, **shown}}

    return reset


def _valid(form: Form, name: str, value: Any) -> bool:
    widget = form.widgets[name]
    try:
        read = form.values({other: (value if other is widget else None) for other in form.widgets.values()})
        needed = {"images": "x"} if "images" in form.kind.model_fields else {}
        build(form.kind, {**needed, **read})
    except (StudioError, TypeError, ValueError):
        return False
    return True
