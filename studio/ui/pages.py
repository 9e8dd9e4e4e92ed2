"""The views without a form: Library, Queue, Help."""

import gradio as gr

from studio.ui.assets import DOCS
from studio.ui.components import slot, splitter

GUIDE = ("guide.md", "training.md", "networks.md", "scaling.md", "reliability.md", "cli.md", "http.md")
MISSING = "# Help\n\nThe guide is not beside this installation. The command `lora-studio --help` lists every command."


def library_view() -> None:
    with gr.Column(elem_id="view-library", elem_classes="st-view"):
        slot("library.js", "library")


def queue_view() -> None:
    with gr.Column(elem_id="view-queue", elem_classes="st-view"):
        slot("queue.js", "queue")


def help_view() -> None:
    with gr.Column(elem_id="view-help", elem_classes="st-view"):
        slot("help.js", "help-contents")
        splitter("chapters", "Width of the chapters", initial=300, limits=(200, 480), side=1)
        with gr.Column(elem_id="help-text", elem_classes="st-helptext"):
            gr.Markdown(guide(), sanitize_html=True, elem_classes="st-prose")


def guide() -> str:
    """The user guide: named chapters first, then any other page that is for readers of the app."""
    found = [DOCS / name for name in GUIDE if (DOCS / name).is_file()]
    texts = [path.read_text(encoding="utf-8").replace("](images/", "](/studio-docs/images/") for path in found]
    return "\n\n".join(texts) or MISSING
