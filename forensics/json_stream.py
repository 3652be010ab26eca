"""One JSON object that is too large for memory, member by member, and of one array in it element by element.

Finds where values begin and end; whether each is sound JSON is left to the parser that reads it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from forensics.compression import pieces

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_VALUE_BYTES: Final = 16 << 20
SPACE: Final = re.compile(rb"[ \t\r\n]*")
STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
BRACKET_OR_STRING: Final = re.compile(rb'[\[\]{}]|"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""A string may lack its end: then the rest of the window is it."""
SCALAR: Final = re.compile(rb"[^\s,\[\]{}\"]+")


class Malformed(Exception):  # noqa: N818 - a fact about the file
    """The file is no such object, or not to its end; the message says where."""


class Value(NamedTuple):
    """One value: the member that it is, or is an element of; where it begins in the unpacked file; its bytes.

    position: bytes of the file read so far.
    """

    member: str
    line: int
    offset: int
    raw: bytes
    position: int


def values(path: Path, size: int, streamed: str) -> Iterator[Value]:
    """Yield every member of the object in a file, plain or packed; of the array `streamed` every element instead.

    Raises Malformed, or Broken where a packed file ends early; what came before stands.
    """
    text = _Text(path, size)
    text.expect(b"{")
    while text.next() != b"}":
        raw = text.value()[2]
        name = raw[1:-1].decode("utf-8", "replace") if raw.startswith(b'"') else text.fail("no name of a member")
        text.expect(b":")
        if name == streamed and text.next() == b"[":
            text.expect(b"[")
            while text.next() != b"]":
                yield Value(name, *text.value(), text.position)
                text.separator(b"]")
            text.expect(b"]")
        else:
            yield Value(name, *text.value(), text.position)
        text.separator(b"}")
    text.expect(b"}")


class _Text:
    """A window on the unpacked bytes of a file, and a place in it."""

    def __init__(self, path: Path, size: int) -> None:
        self._pieces = pieces(path, size)
        self._held = b""
        self._at = 0
        self._before = 0
        self._line = 1
        self.position = 0

    def fail(self, what: str) -> str:
        raise Malformed(f"{what} at byte {self._before + self._at}")

    def next(self) -> bytes:
        """Return the next byte that is not space; b'' at the end."""
        while True:
            found = SPACE.match(self._held, self._at)
            self._pass(found.end() if found else self._at)
            if self._at < len(self._held) or not self._more():
                return self._held[self._at : self._at + 1]

    def expect(self, byte: bytes) -> None:
        if self.next() != byte:
            self.fail(
                f"no {byte.decode()!r}" if self._at < len(self._held) else f"the end, before a {byte.decode()!r},"
            )
        self._pass(self._at + 1)

    def separator(self, closing: bytes) -> None:
        """Pass the comma that must stand here unless the closing bracket does."""
        if self.next() != closing:
            self.expect(b",")
            if self.next() == closing:
                self.fail("no value after a comma")

    def value(self) -> tuple[int, int, bytes]:
        """Return line, offset and bytes of the value that begins here."""
        self.next()
        while (end := self._end()) is None:
            if len(self._held) - self._at > MAX_VALUE_BYTES:
                self.fail(f"a value longer than {MAX_VALUE_BYTES >> 20} MiB")
            if not self._more():
                self.fail("the end of the file inside a value that begins")
        line, offset, raw = self._line, self._before + self._at, self._held[self._at : end]
        if not raw:
            self.fail("no value")
        self._pass(end)
        return line, offset, raw

    def _end(self) -> int | None:
        """Return where the value that begins here ends; None if that is not in the window yet."""
        first = self._held[self._at : self._at + 1]
        if first not in (b"{", b"["):
            found = (STRING if first == b'"' else SCALAR).match(self._held, self._at)
            if found is None:
                return None if first in (b'"', b"") else self._at
            whole = first == b'"' or found.end() < len(self._held)
            return found.end() if whole else None
        depth = 0
        for one in BRACKET_OR_STRING.finditer(self._held, self._at):
            if one[0] in (b"{", b"["):
                depth += 1
            elif one[0] in (b"}", b"]"):
                depth -= 1
                if not depth:
                    return one.end()
        return None

    def _pass(self, end: int) -> None:
        self._line += self._held.count(b"\n", self._at, end)
        self._at = end

    def _more(self) -> bool:
        for piece, position in self._pieces:
            self._before += self._at
            self._held, self._at, self.position = self._held[self._at :] + piece, 0, position
            if piece:
                return True
        return False
