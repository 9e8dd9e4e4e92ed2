"""serve: the studio in the browser."""

import argparse

from studio.cli.opening import opened
from studio.errors import SettingsError


def serve(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.port <= 65535:
        raise SettingsError(f"port {arguments.port} is not between 0 and 65535")
    from studio.ui.serve import serve as run

    with opened(arguments) as workspace:
        run(workspace, host=arguments.host, port=arguments.port, open_browser=not arguments.no_browser)
    return 0
