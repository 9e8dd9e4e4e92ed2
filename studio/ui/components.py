"""Places in the page that our own scripts fill.

Templates stay empty: Gradio compiles a template to code, so a value in one could run. Values travel as props or over /api and become
text nodes in the scripts.
"""

import json
from typing import Any

import gradio as gr

from studio.ui.assets import address


def slot(script: str, id: str, *, mount: str = "mount", options: dict[str, Any] | None = None) -> gr.HTML:
    """An element that `mount` of a script fills. `options` are ours, never a user's."""
    start = f"import({json.dumps(address(f'js/{script}'))}).then((module) => module.{mount}(element, {json.dumps(options or {})}));"
    return gr.HTML("", html_template="", js_on_load=start, elem_id=id, elem_classes="st-slot", apply_default_css=False, padding=False)


def splitter(name: str, label: str, *, initial: int, limits: tuple[int, int], side: int, axis: str = "x") -> gr.HTML:
    """A movable border that sets the CSS variable --st-NAME. `side`: 1 if the panel it sizes lies before it, -1 if after."""
    options = {"name": name, "initial": initial, "min": limits[0], "max": limits[1], "side": side, "axis": axis, "label": label}
    return slot("splitters.js", f"split-{name}", options=options)


def bridge(form: str) -> gr.HTML:
    """The hidden part through which scripts send commands to a form's Python half and hear its replies; its events are `command`
    and, before it, `gather`: what the widgets hold."""
    start = (
        f"import({json.dumps(address('js/form.js'))}).then((module) => module.mount(element, {json.dumps({'name': form})}, {{props, trigger, watch}}));"
        " /* 'command' 'gather' */"
    )
    return gr.HTML(None, html_template="", js_on_load=start, elem_id=f"bridge-{form}", elem_classes="st-hide", apply_default_css=False)
