"""The command line: `lora-studio VERB ...`. One place turns errors into exit codes."""

import errno
import os
import sys
from collections.abc import Sequence

from studio.errors import StudioError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 unexpected, 2 bad input, 3 the run failed, 130 cancelled."""
    from studio.cli.parser import parse

    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        return int(arguments.run(arguments))
    except StudioError as error:
        print(f"lora-studio: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("lora-studio: cancelled", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more can reach it
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print("lora-studio: the disk is full; free some space and do it again", file=sys.stderr)
        return StudioError.exit_code
