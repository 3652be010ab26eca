"""Bytes of a file, unpacked if it is gzip or zstandard, in bounded pieces. Knows nothing of what they mean.

A stream that ends early gives all that came before, then raises Broken. One that is damaged inside is refused whole:
what was unpacked before the damage showed may be wrong already, and look right. So is one that grows beyond reason.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

import zstandard

from forensics.errors import BAD_INPUT, ForensicsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

MAX_UNPACKED_BYTES: Final = 64 << 30
MAX_RATIO: Final = 500
"""Unpacked bytes per packed byte. Logs reach about 60; a bomb reaches 1,000 in gzip, 30,000 in zstandard."""
RATIO_COUNTS_FROM: Final = 64 << 20
"""Unpacked bytes below which any ratio is harmless."""

PIECE: Final = 1 << 20
ZSTD_INPUT: Final = 2 << 10
"""A zstandard block of 4 bytes can stand for 128 KiB, so this much input is at most 64 MiB of output."""
GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class Broken(Exception):  # noqa: N818 - a fact about the file
    """The packed stream ends early or is followed by rubbish; the message says where. What came before stands."""


class _Damaged(Exception):  # noqa: N818 - a fact about the file
    """Bytes inside the packed stream are not those that were written."""


def packing(head: bytes) -> str | None:
    """Return how a file that begins with `head` is packed, None if it is plain."""
    if head.startswith(GZIP_MAGIC):
        return "gzip"
    return "zstandard" if head.startswith(ZSTD_MAGIC) else None


def unpacked_head(head: bytes) -> bytes:
    """Return what the beginning of a file says once unpacked, as far as it can be unpacked; at most one piece."""
    packed = packing(head)
    found = b""
    try:
        if packed == "gzip":
            found = zlib.decompressobj(31).decompress(head, PIECE)
        elif packed == "zstandard":
            unpacker = _zstd()
            for start in range(0, len(head), ZSTD_INPUT):
                found += unpacker.decompress(head[start : start + ZSTD_INPUT])
                if len(found) >= PIECE or unpacker.eof:
                    break
    except (zlib.error, zstandard.ZstdError):
        return found[:PIECE]
    return found[:PIECE] if packed else head


def pieces(path: Path, size: int, skip: int = 0) -> Iterator[tuple[bytes, int]]:
    """Yield (unpacked bytes, position reached in the file) over the first `size` bytes of a file.

    The first `skip` unpacked bytes are left out: passed over in a plain file, unpacked and dropped in a packed one.
    """
    with path.open("rb") as file:
        packed = packing(file.read(4)[:size])
        file.seek(0)
        if packed is None:
            file.seek(skip)
            yield from _plain(file, size, skip)
            return
        unpacked = 0
        try:
            for piece, position in (_gzip if packed == "gzip" else _zstandard)(file, size):
                unpacked += len(piece)
                too_dense = unpacked > RATIO_COUNTS_FROM and unpacked > MAX_RATIO * position
                if too_dense or unpacked > MAX_UNPACKED_BYTES:
                    raise _refused(
                        f"{path}: {packed} that unpacks to more than {unpacked >> 20} MiB from {position} bytes"
                    )
                yield piece[max(0, len(piece) - max(0, unpacked - skip)) :], position
        except _Damaged as fault:
            raise _refused(f"{path}: {packed} that is damaged: {fault}") from None


def _refused(message: str) -> ForensicsError:
    return ForensicsError(message, BAD_INPUT, "if you trust it, unpack it yourself and ingest what comes out")


def _plain(file: BinaryIO, size: int, position: int = 0) -> Iterator[tuple[bytes, int]]:
    while position < size and (piece := file.read(min(PIECE, size - position))):
        position += len(piece)
        yield piece, position


def _gzip(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    unpacker, position, sound = zlib.decompressobj(31), 0, False
    for packed, position in _plain(file, size):
        while packed:
            if unpacker.eof:  # the next member, or the zeros that tapes and block devices pad with
                packed = packed.lstrip(b"\0")
                unpacker, sound = (zlib.decompressobj(31), True) if packed else (unpacker, sound)
                continue
            try:
                piece = unpacker.decompress(packed, PIECE)
            except zlib.error as fault:
                raise _fault(sound, position, fault) from None
            packed = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            sound = sound and not piece
            yield piece, position
    if not unpacker.eof:
        raise Broken(f"the file ends at byte {position}, inside a gzip stream")


def _fault(sound: bool, position: int, fault: Exception) -> Exception:
    """Return how bad a fault is. `sound`: a stream before it was whole, and nothing has been unpacked since."""
    if sound:
        return Broken(f"the packed stream is followed by something else, at byte {position} of the file at the latest")
    return _Damaged(f"it shows at byte {position} of the file at the latest ({fault})")


def _zstd() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()


def _zstandard(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    unpacker, start, sound = _zstd(), 0, False
    for block, end in _plain(file, size):
        start = end - len(block)
        while start < end:
            packed = block[len(block) - (end - start) :][:ZSTD_INPUT]
            if unpacker.eof:
                unpacker, sound = _zstd(), True
            try:
                piece = unpacker.decompress(packed)
            except zstandard.ZstdError as fault:
                raise _fault(sound, end, fault) from None
            start += len(packed) - len(unpacker.unused_data)
            sound = sound and not piece
            yield piece, start
    if not unpacker.eof:
        raise Broken(f"the file ends at byte {start}, inside a zstandard stream")
