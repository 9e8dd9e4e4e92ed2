"""What stands in front of every route, the page's included: who may ask, how much they may send, what browsers may do with replies."""

import json

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost", "[::1]")
SAFE = ("GET", "HEAD", "OPTIONS")
MAX_BODY = 4 * 1024**2
MAX_UPLOAD = 16 * 1024**3
UPLOADS = ("/api/sets/", "/api/adapters", "/api/images/recall", "/api/images/inputs")
# Gradio routes that this page never uses and that would take files, fetch addresses or show figures.
CLOSED = (
    "/gradio_api/upload",
    "/gradio_api/proxy=",
    "/gradio_api/file=",
    "/gradio_api/file/",
    "/gradio_api/deep_link",
    "/gradio_api/monitoring",
    "/monitoring",
    "/openapi.json",
    "/docs",
    "/redoc",
)
# gr.HTML compiles its templates, hence 'unsafe-eval'.
CSP = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
REPLY_HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_DROPPED = ("access-control-allow-origin", "access-control-allow-credentials", "access-control-allow-methods", "access-control-allow-headers")


def refusal(scope: Scope) -> tuple[int, str] | None:
    """Status and reason why this request is not answered, or None.

    A name other than ours in Host is DNS rebinding; an Origin other than Host's is another page in the same browser, and
    WebSockets are not covered by CORS. Clients that are no browser send neither Origin nor Sec-Fetch-Site.
    """
    headers = Headers(scope=scope)
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not known_host(hosts[0]):
        return 400, "this studio answers to 127.0.0.1 and localhost only"
    if scope["type"] == "http" and scope["method"] in SAFE:
        return None
    origins = headers.getlist("origin")
    if any(origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in origins):
        return 403, "another page may not act on this studio"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return 403, "another page may not act on this studio"
    return None


def known_host(host: str) -> bool:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, "0"
    return name.lower() in HOSTS and port.isdigit()


class Guard:
    """Refuses by Host and Origin, closes unused routes, caps bodies, and puts the security headers on replies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refused = refusal(scope) or self._closed(scope["path"])
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send, refused is not None)
            return
        exchange = _Exchange(receive, send, MAX_UPLOAD if scope["path"].startswith(UPLOADS) else MAX_BODY)
        length = Headers(scope=scope).get("content-length", "0")
        if refused is None and (not length.isdigit() or int(length) > exchange.limit):
            refused = exchange.too_large
        if refused:
            await JSONResponse({"error": refused[1]}, status_code=refused[0])(scope, receive, exchange.send)
            return
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except TooLarge:
            await exchange.refuse()

    def _closed(self, path: str) -> tuple[int, str] | None:
        return (404, "nothing here") if path.startswith(CLOSED) or not path.isprintable() else None

    async def _socket(self, scope: Scope, receive: Receive, send: Send, refused: bool) -> None:
        if not refused:
            await self.app(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.close", "code": 1008})


class TooLarge(Exception):
    """A body without a length, or one that lied about it, went over the limit."""


class _Exchange:
    """One request and its reply: the body counted, the reply given our headers."""

    def __init__(self, receive: Receive, send: Send, limit: int) -> None:
        self.limit = limit
        self.too_large = (413, f"the request is larger than the {limit // 1024**2} MB that this address takes")
        self._receive, self._send = receive, send
        self._taken = 0
        self._done = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._taken += len(message.get("body", b""))
        if self._taken > self.limit:
            raise TooLarge
        return message

    async def send(self, message: Message) -> None:
        if self._taken > self.limit:  # whatever was made of the broken-off body, the reason is its size
            await self.refuse()
            return
        if message["type"] == "http.response.start":
            self._done = True
            headers = MutableHeaders(scope=message)
            for name in _DROPPED:
                del headers[name]
            for name, value in REPLY_HEADERS.items():
                headers[name] = value
        await self._send(message)

    async def refuse(self) -> None:
        if self._done:
            return
        self._done = True
        body = json.dumps({"error": self.too_large[1]}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close", **REPLY_HEADERS}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": 413, "headers": raw})
        await self._send({"type": "http.response.body", "body": body})
