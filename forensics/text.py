"""Text from a log made safe to show: nothing in it may move a cursor, set a colour or end a table cell."""

from __future__ import annotations

import shlex
import unicodedata
from datetime import UTC, datetime

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


def shell(word: object) -> str:
    """Return a word as a POSIX shell (bash, zsh) takes it literally; control characters as $'\\x1b'."""
    text = str(word)
    if printable(text, len(text)) == text:
        return shlex.quote(text)
    escaped = "".join(
        char if char.isprintable() and char not in "\\'" else "".join(f"\\x{byte:02x}" for byte in char.encode())
        for char in text
    )
    return f"$'{escaped}'"


def command(*words: object, request: object) -> str:
    """Return a `forensics` command on a request, to be pasted; ids may look like options, so they come last."""
    guard = ["--"] if str(request).startswith("-") else []
    return " ".join(["forensics", *(shell(word) for word in words), *guard, shell(request)])


def moment(ts: float | None) -> str:
    """Return Unix seconds as UTC to the millisecond; a number that is no date comes back as a number."""
    if ts is None:
        return "not on record"
    try:
        return f"{datetime.fromtimestamp(ts, UTC):%Y-%m-%d %H:%M:%S}.{int(ts % 1 * 1000):03d}Z"
    except (OverflowError, ValueError, OSError):
        return f"{ts:g} s"


def code(value: object, limit: int = SHOWN_LIMIT) -> str:
    """Return a value as an inline code span, safe inside a table cell."""
    text = printable(value, limit).replace("|", "\\|")
    longest = max((len(run) for run in text.replace("`", " ` ").split() if set(run) == {"`"}), default=0)
    ticks = "`" * (text.count("`") + 1 if longest else 1)
    return f"{ticks} {text} {ticks}" if "`" in text else f"`{text}`"
