"""Everything that can go wrong and is told to a person in one line.

    StudioError                     exit 1   unexpected, but ours
    ├── Unavailable                          database or disk refuse it now; the same act works when they do not
    ├── InputError                  exit 2   what was given does not fit: value, rule, way out
    │   ├── SettingsError                    unknown or wrong setting
    │   ├── ImageError                       a picture, or a set of them
    │   ├── BaseError                        a base model: missing, gated, wrong kind
    │   ├── FormatError                      a LoRA file: broken, foreign, for another base
    │   └── NotFound                         no such run, set, adapter, image
    ├── RunError                    exit 3   a job failed while it ran
    │   └── Interrupted                      it was told to stop, and can go on from where it stood
    └── Cancelled                   exit 130 somebody stopped it

Front ends translate in one place: exit code on the command line, status over HTTP, toast in the page.
"""

from typing import ClassVar


class StudioError(Exception):
    """One sentence: what, where, and the way out."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500


class Unavailable(StudioError):
    http_status = 503


class InputError(StudioError):
    exit_code = 2
    http_status = 422


class SettingsError(InputError):
    pass


class ImageError(InputError):
    pass


class BaseError(InputError):
    pass


class FormatError(InputError):
    pass


class NotFound(InputError):
    http_status = 404


class RunError(StudioError):
    exit_code = 3
    http_status = 409


class Interrupted(RunError):
    pass


class Cancelled(StudioError):
    exit_code = 130
    http_status = 409
