"""The first answer of the page: the right theme, and our style sheets in the HTML itself, so that nothing flashes."""

from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.ui.assets import CSS, address


class FrontDoor:
    """Sends / to the theme that was chosen, and writes links to our assets into the head of the page."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        if parse_qs(scope["query_string"].decode("latin-1")).get("__theme", [""])[0] not in ("dark", "light"):
            await RedirectResponse(f"/?__theme={_theme(Headers(scope=scope).get('cookie', ''))}", 307)(scope, receive, send)
            return
        await self.app(_plain(scope), receive, _Inserting(send).send)


def _theme(cookies: str) -> str:
    try:
        chosen = SimpleCookie(cookies).get("studio_theme")
    except CookieError:
        return "dark"
    return "light" if chosen is not None and chosen.value == "light" else "dark"


def _plain(scope: Scope) -> Scope:
    """The request without Accept-Encoding, so that the page comes as text that can be added to."""
    return {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]}


# Gradio's loading screen counts seconds in every frame and goes on doing so when it is gone, as does each call that waits: a page in
# which nothing happens would draw 60 times a second. Once our own part stands (it names its view), nobody sees those counts.
_STILL = """{const frame=requestAnimationFrame.bind(window),counts=/performance\\.now\\(\\)[^;]*1e3/;
window.requestAnimationFrame=(act)=>document.body?.dataset.view&&counts.test(act)?0:frame(act)}"""


def head() -> str:
    links = "".join(f'<link rel="stylesheet" href="{address(f"css/{name}.css")}">' for name in CSS)
    icon = f'<link rel="icon" type="image/svg+xml" href="{address("icons/favicon.svg")}">'
    early = f'<link rel="modulepreload" href="{address("js/shell.js")}">'
    theme = 'document.documentElement.dataset.theme=new URL(location).searchParams.get("__theme")==="light"?"light":"dark"'
    return f"<script>{theme};{_STILL}</script>{links}{icon}{early}"


class _Inserting:
    """Holds the page back until it is whole, then sends it with our head."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if not MutableHeaders(scope=message).get("content-type", "").startswith("text/html"):
                await self._send(message)
                return
            self._start = message
            return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        body = self._body.replace(b"<head>", b"<head>" + head().encode(), 1)
        headers = MutableHeaders(scope=self._start)
        headers["content-length"] = str(len(body))
        headers["cache-control"] = "no-store"
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})
