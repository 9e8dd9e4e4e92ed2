"""The page: Gradio forms in a shell of our own, mounted into the HTTP application."""

import os

from fastapi import FastAPI
from starlette.middleware import Middleware

from studio.workspace import Workspace

__all__ = ["mount"]


def mount(app: FastAPI, workspace: Workspace) -> FastAPI:
    """Put the page at / of an application made by `studio.api.app`. Importing Gradio takes seconds, so it happens here."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    from studio.ui import assets
    from studio.ui.frontdoor import FrontDoor
    from studio.ui.page import page
    from studio.ui.theme import theme

    assets.serve_assets(app)
    app.user_middleware.append(Middleware(FrontDoor))  # innermost: behind the guard
    return gr.mount_gradio_app(
        app,
        page(workspace),
        path="/",
        theme=theme(),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        max_file_size=0,
    )
