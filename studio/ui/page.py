"""The one page: rail, views, status bar."""

import gradio as gr

from studio.ui.components import slot
from studio.ui.generate import generate_view
from studio.ui.pages import help_view, library_view, queue_view
from studio.ui.train import train_view
from studio.workspace import Workspace

QUEUE_SECONDS = 1.0  # between two looks into Gradio's own queue


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
    # Gradio looks for queued calls a thousand times a second, a twentieth of a core for as long as the studio runs; ours are never queued
    blocks._queue.sleep_when_free = QUEUE_SECONDS
    return blocks
