"""The one page: rail, views, status bar."""

import gradio as gr

from studio.ui.components import slot
from studio.ui.generate import generate_view
from studio.ui.pages import help_view, library_view, queue_view
from studio.ui.train import train_view
from studio.workspace import Workspace


def page(workspace: Workspace) -> gr.Blocks:
    """The Blocks of the studio; all state lives in the workspace or in the browser."""
    with gr.Blocks(title="LoRA Studio", fill_width=True, analytics_enabled=False) as blocks, gr.Column(elem_id="shell"):
        slot("shell.js", "rail")
        with gr.Column(elem_id="views"):
            train_view(workspace)
            generate_view(workspace)
            library_view()
            queue_view()
            help_view()
        slot("status.js", "status")
    return blocks
