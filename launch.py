"""Set up on the first run, then start: `python launch.py`, `python launch.py test`, `python launch.py train ...`.

Needs nothing but Python's standard library. This file parses in every Python, so that an old one can say what is missing.
"""

import os
import sys

if sys.version_info < (3, 11):
    sys.exit(
        "LoRA Studio needs Python 3.11 or newer; this is %d.%d (%s). Install one from https://www.python.org/downloads/ and start with it."
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )

ROOT = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, ROOT)

from studio.environment import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(ROOT, sys.argv[1:]))
