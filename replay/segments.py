"""The files of one run: a sequence of segments, compressed as they are written, the oldest deleted when told.

Knows bytes and how many lines they are, nothing of what they say. One thread uses it. Only `push`, `flush`, `roll`
and `delete` touch the disk; what a full disk does not take waits in memory, in order, and is tried again.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType
    from typing import BinaryIO

    from replay.policy import Policy

MIB: Final = 1 << 20
SUFFIX: Final = {"none": ".jsonl", "gzip": ".jsonl.gz", "zstd": ".jsonl.zst"}

GZIP_LEVEL: Final = 2
"""A log takes a fifth more than at level 6, in 40 % of the time."""


class Packer(Protocol):
    """A stream of bytes being packed. After `flush` all that went in can be unpacked; `finish` ends the stream."""

    def pack(self, data: bytes) -> bytes:
        """Return packed bytes; some may be held back."""

    def flush(self) -> bytes:
        """Return what was held back, at a point where a reader can stop."""

    def finish(self) -> bytes:
        """Return the end of the stream."""


class _Plain:
    def pack(self, data: bytes) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""

    finish = flush


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)

    def pack(self, data: bytes) -> bytes:
        return self._stream.compress(data)

    def flush(self) -> bytes:
        return self._stream.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._stream.flush(zlib.Z_FINISH)


class _Zstd:
    def __init__(self) -> None:
        module = _zstandard()
        assert module is not None, "the policy asks for zstd only where it is"
        self._stream = module.ZstdCompressor(level=3).compressobj()
        self._block = module.COMPRESSOBJ_FLUSH_BLOCK

    def pack(self, data: bytes) -> bytes:
        return bytes(self._stream.compress(data))

    def flush(self) -> bytes:
        return bytes(self._stream.flush(self._block))

    def finish(self) -> bytes:
        return bytes(self._stream.flush())


PACKERS: Final[dict[str, type[Packer]]] = {"none": _Plain, "gzip": _Gzip, "zstd": _Zstd}


def _zstandard() -> ModuleType | None:
    try:
        import zstandard
    except ImportError:  # the recorder is installed into serving images without dependencies
        return None
    return zstandard


def best() -> str:
    """Return the best compression that this environment has: zstd where the module is installed, else gzip."""
    return "gzip" if _zstandard() is None else "zstd"


@dataclass(frozen=True)
class Segment:
    """A finished file. `first` and `end`: the lines [first, end) of the writer's stream; `ended`: monotonic seconds."""

    path: Path
    size: int
    first: int
    end: int
    ended: float


class Segments:
    """Writes `STEM-0000.jsonl…`, `STEM-0001.jsonl…`, each a stream of its own. Raises OSError as the disk does."""

    def __init__(self, directory: Path, stem: str, policy: Policy) -> None:
        self._directory, self._stem, self._policy = directory, stem, policy
        self._number = 0
        self._closed: list[Segment] = []
        self._pending = bytearray()
        self._unflushed = False
        self._lines = 0
        self.bytes_written = 0
        self._open("xb")

    def _open(self, mode: str) -> None:
        name = f"{self._stem}-{self._number:04d}{SUFFIX[self._policy.compress]}"
        # Unbuffered: a process that forks must not carry half-written lines that its child writes once more.
        self._file: BinaryIO | None = (self._directory / name).open(mode, buffering=0)  # type: ignore[assignment]
        self._packer: Packer | None = PACKERS[self._policy.compress]()
        self.path = self._directory / name
        if mode == "xb":
            self._first, self._size, self._opened = self._lines, 0, time.monotonic()

    @property
    def backlog(self) -> int:
        """Packed bytes that the disk has not taken yet."""
        return len(self._pending)

    @property
    def full(self) -> bool:
        """Whether the next line belongs into a new file: this one is large or old enough, or could not be opened."""
        if self._packer is None:
            return True
        too_large = self._size + len(self._pending) >= self._policy.segment_mb * MIB
        return self._lines > self._first and (too_large or time.monotonic() - self._opened >= self._policy.segment_s)

    def append(self, data: bytes, lines: int) -> None:
        """Take whole lines. Nothing is written yet."""
        assert self._packer is not None
        self._pending += self._packer.pack(data)
        self._unflushed = True
        self._lines += lines

    def push(self) -> None:
        """Write what is packed so far."""
        while self._pending and self._file is not None:
            taken = self._file.write(self._pending)
            del self._pending[:taken]
            self._size += taken
            self.bytes_written += taken

    def flush(self) -> None:
        """Write all that was appended, so that a reader of the unfinished file can read it."""
        if self._unflushed and self._packer is not None:
            self._pending += self._packer.flush()
            self._unflushed = False
        self.push()

    def close(self) -> None:
        """End the current file. Does nothing when it has ended."""
        if self._packer is not None:
            self._pending += self._packer.finish()
            self._packer = None
        if self._file is not None:
            self.push()
            self._file.close()
            self._file = None

    def reopen(self) -> None:
        """Go on at the end of the last file, in a stream that follows the first one."""
        self._open("ab")

    def roll(self) -> None:
        """End the current file and begin the next."""
        if self._file is not None:
            self.close()
            self._closed.append(Segment(self.path, self._size, self._first, self._lines, time.monotonic()))
            self._number += 1
        self._open("xb")

    def expired(self) -> list[Segment]:
        """Return the finished files that the policy no longer keeps, oldest first."""
        keep_mb, keep_s = self._policy.keep_mb, self._policy.keep_s
        total = self._size + sum(segment.size for segment in self._closed)
        found = []
        for segment in self._closed:
            old = keep_s is not None and time.monotonic() - segment.ended > keep_s
            if not old and not (keep_mb is not None and total > keep_mb * MIB):
                break
            total -= segment.size
            found.append(segment)
        return found

    def delete(self, expired: list[Segment]) -> None:
        """Delete finished files. One that somebody else took away is gone too."""
        for segment in expired:
            self._closed.remove(segment)
            with contextlib.suppress(FileNotFoundError):
                segment.path.unlink()
