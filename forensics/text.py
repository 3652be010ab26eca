"""Text from a log made safe to show: nothing in it may move a cursor, set a colour or end a table cell."""

from __future__ import annotations

import unicodedata

SHOWN_LIMIT = 400
"""Characters of one value that a report shows; a log can hold ids of a megabyte."""


def printable(value: object, limit: int = SHOWN_LIMIT) -> str:
    """Return a value as one line of text with control, format and bidi characters written as escapes."""
    text = str(value)
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text)} characters)"
    return "".join(
        char if unicodedata.category(char)[0] != "C" and char not in "\u2028\u2029" else f"\\u{{{ord(char):x}}}"
        for char in text
    )


def markdown(value: object, limit: int = SHOWN_LIMIT) -> str:
    """Return a value as inline markdown that renders as the very same characters."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>()#+!|~&$" else char for char in printable(value, limit))


def code(value: object, limit: int = SHOWN_LIMIT) -> str:
    """Return a value as an inline code span, safe inside a table cell."""
    text = printable(value, limit).replace("|", "\\|")
    longest = max((len(run) for run in text.replace("`", " ` ").split() if set(run) == {"`"}), default=0)
    ticks = "`" * (text.count("`") + 1 if longest else 1)
    return f"{ticks} {text} {ticks}" if "`" in text else f"`{text}`"
