"""Short ids that sort by the time they were drawn."""

import secrets
import threading
import time

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_lock = threading.Lock()
_last = 0


def go_on_after(id: str) -> None:
    """Let later ids sort after this one, should the clock have been set back since it was drawn."""
    global _last
    if len(id) >= 8 and set(id[:8]) <= set(_DIGITS):
        with _lock:
            _last = max(_last, int(id[:8], 36))


def new_id() -> str:
    """Eight base-36 digits of the time in milliseconds and two random ones; later ids of one process always sort later."""
    global _last
    with _lock:
        _last = max(_last + 1, time.time_ns() // 1_000_000)
        moment = _last
    text = ""
    while moment:
        moment, digit = divmod(moment, 36)
        text = _DIGITS[digit] + text
    return text.rjust(8, "0") + "".join(secrets.choice(_DIGITS) for _ in range(2))
