"""The trigger in captions, and the sign behind what is kept of them."""

import re


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger in front, unless it says it already."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def without_separator(caption: str, separator: str) -> str:
    """The caption as it is read: without the sign that parts what is kept from what is shuffled or left out."""
    if not separator or separator not in caption:
        return caption
    return ", ".join(part for part in (piece.strip(" ,\t") for piece in caption.split(separator)) if part)
