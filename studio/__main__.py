"""`python -m studio`: the same as the command `lora-studio`."""

import sys

from studio.cli import main

sys.exit(main())
