"""Text from a log made safe to show: nothing in it may move a cursor, set a colour or end a table cell."""

from __future__ import annotations

import re
import shlex
import unicodedata
from datetime import UTC, datetime

SHOWN_LIMIT = 400
"""Characters of one value that a report shows; a log can hold ids of a megabyte."""
LINKED = re.compile(r"://|www\.|@|mailto:|javascript:|#\d", re.IGNORECASE)


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
    """Return a value as inline markdown that renders as the very same characters, at the start of a block too.

    Words that a viewer would make a link or a mention of (https://…, www.…, a@b) become code spans: no escape stops it.
    """
    words = re.split(r"( +)", printable(value, limit).lstrip(" "))  # four would begin a code block
    text = "".join(code(word) if LINKED.search(word) else _escaped(word) for word in words)
    return re.sub(r"^(\d+(?=[.)])|(?=[-+=]))", r"\1\\", text)  # would begin a list or a heading


def _escaped(word: str) -> str:
    return re.sub(r"[\\`*\[\]<>#~&$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", word).replace("|", "&#124;")


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
    """Return a value as inline code, in a table cell too: a pipe stands between the spans."""
    text = printable(value, limit)
    return "&#124;".join(_span(part) if part else "" for part in text.split("|")) if text else "(empty)"


def _span(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    ticks = "`" * (longest + 1)
    padded = "`" in (text[0], text[-1]) or (text[0] == text[-1] == " " and text.strip())
    return f"{ticks} {text} {ticks}" if padded else f"{ticks}{text}{ticks}"


def mermaid(value: object, limit: int = 60) -> str:
    """Return a value as the quoted label of a mermaid node: what is no plain letter becomes an entity code."""
    plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _.,:="
    return '"' + "".join(char if char in plain else f"#{ord(char)};" for char in printable(value, limit)) + '"'
