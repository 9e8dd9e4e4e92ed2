"""Every page learns at once what another page, or this one, has changed."""

from collections.abc import Callable, Iterator

from fastapi import Request

from studio.workspace import Workspace


def announcing(workspace: Workspace, what: str) -> Callable[[Request], Iterator[None]]:
    """A dependency of a router: after a request that changed something, all pages hear that their list of `what` is old."""

    def announce(request: Request) -> Iterator[None]:
        yield
        if request.method not in ("GET", "HEAD"):
            workspace.hub.publish("", changed=what)

    return announce
