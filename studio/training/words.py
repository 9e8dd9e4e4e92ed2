"""The trigger in captions."""

import re


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger in front, unless it says it already."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption else trigger
