"""What can go wrong while setting up, in one line."""

import re
import sys
from pathlib import Path


class SetupError(Exception):
    """One sentence: what is wrong and the way out."""


class NotOffered(SetupError):
    """The index cannot be reached or does not have the package; another index may."""


FULL = re.compile(r"No space left on device|errno 28|not enough space on the disk|Disk quota exceeded", re.IGNORECASE)
DENIED = re.compile(r"Permission denied|errno 13|Read-only file system|Access is denied", re.IGNORECASE)
OFFLINE = re.compile(
    r"Failed to establish a new connection|name resolution|getaddrinfo failed|NameResolutionError|Name or service not known|Connection refused"
    r"|ConnectTimeout|Read timed out|ReadTimeout|ProxyError|Network is unreachable|Connection (?:aborted|reset)|SSLError|CERTIFICATE_VERIFY_FAILED",
    re.IGNORECASE,
)
MISSING = re.compile(r"No matching distribution found for (\S+)")


def explain(output: str, root: Path, log: Path) -> SetupError:
    """The error behind what pip printed."""
    if FULL.search(output):
        return SetupError(f"the disk of {root} is full; free some space and start again, what is there already is kept")
    if DENIED.search(output):
        return SetupError(f"{root} cannot be written; move the folder to a place of your own, or mend its rights, and start again")
    if OFFLINE.search(output):
        return NotOffered("no connection to the package index; check network, proxy and clock, then start again, what is there already is kept")
    missing = MISSING.search(output)
    if missing:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return NotOffered(f"the package index has no {missing[1]} for Python {version} on {sys.platform}; Python 3.11 to 3.13 are known to work")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    cause = (errors or lines or ["no output"])[0 if errors else -1]
    return SetupError(f"pip failed: {cause.removeprefix('ERROR: ')[:200]} (all of it in {log})")
