"""JSON Lines: lines and offsets exact, packed or not, and what is broken is told with its place."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import forensics.compression
from forensics.compression import unpacked_head
from forensics.errors import ForensicsError
from forensics.ingest import Entry, jsonl
from forensics.values import Rejected

if TYPE_CHECKING:
    from pathlib import Path

PACK: dict[str, Any] = {"plain": bytes, "gzip": gzip.compress, "zstandard": zstandard.compress}


def read(path: Path, content: bytes, size: int | None = None) -> list[Entry]:
    path.write_bytes(content)
    return list(jsonl.read(path, len(content) if size is None else size))


def reason(entry: Entry) -> str:
    assert isinstance(entry.record, Rejected), entry
    return entry.record.reason


@pytest.fixture(params=[7, 1 << 20])
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Return where to put a file; reads come in small and in large pieces."""
    monkeypatch.setattr(forensics.compression, "PIECE", request.param)
    return tmp_path / "a.jsonl"


@pytest.mark.parametrize("pack", PACK)
def test_lines_and_offsets(path: Path, pack: str) -> None:
    content = b'\xef\xbb\xbf{"a":1}\r\n\n  \t\r\n{"a":2}\nbad\n{"a":"\xc3\xa9"}'
    entries = read(path, PACK[pack](content))
    assert [(entry.line, entry.offset) for entry in entries] == [(1, 0), (4, 18), (5, 26), (6, 30)]
    for entry in entries:
        assert entry.raw is not None
        assert content[entry.offset :].startswith(entry.raw)
    assert [entry.record for entry in entries if isinstance(entry.record, dict)] == [{"a": 1}, {"a": 2}, {"a": "é"}]
    assert reason(entries[2]).startswith("not JSON")
    positions = [entry.position for entry in entries]
    assert positions == sorted(positions)
    assert positions[-1] == path.stat().st_size


@pytest.mark.parametrize("content", [b'{"a":1}\n{"a":', b'{"a":1}\n{"a":2}x'])
def test_torn_last_line(path: Path, content: bytes) -> None:
    first, torn = read(path, content)
    assert first.record == {"a": 1}
    assert reason(torn).startswith("torn last line")
    assert (torn.line, torn.offset, torn.raw) == (2, 8, content[8:])


def test_only_the_size_that_was_identified_is_read(path: Path) -> None:
    assert len(read(path, b'{"a":1}\n{"a":2}\n', 8)) == 1


def stream(lines: int) -> bytes:
    return b"".join(
        b'{"number":%d,"noise":"%s"}\n' % (n, hashlib.sha256(b"%d" % n).hexdigest().encode()) for n in range(lines)
    )


@pytest.mark.parametrize("pack", ["gzip", "zstandard"])
def test_a_packed_stream_that_breaks_off(path: Path, pack: str) -> None:
    content = stream(20_000)
    packed = PACK[pack](content)
    *whole, broken = read(path, packed[: len(packed) // 2])
    assert len(whole) > 5_000
    assert [entry.record["number"] for entry in whole] == list(range(len(whole)))  # type: ignore[index]
    assert f"inside a {pack} stream" in reason(broken)
    assert f"byte {len(packed) // 2}" in reason(broken)
    assert (broken.line, broken.offset) == (len(whole) + 1, sum(len(entry.raw or b"") + 1 for entry in whole))
    assert content[broken.offset :].startswith(broken.raw or b"")


@pytest.mark.parametrize("pack", ["gzip", "zstandard"])
def test_a_packed_stream_that_is_damaged(path: Path, pack: str) -> None:
    content = b"".join(b'{"number":%d}\n' % n for n in range(5000))
    packed = bytearray(
        gzip.compress(content) if pack == "gzip" else zstandard.ZstdCompressor(write_checksum=True).compress(content)
    )
    packed[len(packed) // 2] ^= 1
    with pytest.raises(ForensicsError, match=f"{pack} that is damaged"):
        read(path, bytes(packed))


@pytest.mark.parametrize("pack", ["gzip", "zstandard"])
def test_members_follow_each_other(path: Path, pack: str) -> None:
    parts = [PACK[pack](b'{"a":%d}\n' % n) for n in range(3)]
    assert [entry.record for entry in read(path, b"".join(parts))] == [{"a": n} for n in range(3)]
    *whole, broken = read(path, b"".join(parts) + b"no stream")
    assert len(whole) == 3
    assert "followed by something else" in reason(broken)


def test_a_padded_gzip(path: Path) -> None:
    assert len(read(path, gzip.compress(b'{"a":1}\n') + b"\0" * 512)) == 1


def test_a_zstandard_frame_without_a_content_size(path: Path) -> None:
    buffer = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(buffer, closefd=False) as writer:
        writer.write(stream(5000))
    assert len(read(path, buffer.getvalue())) == 5000


@pytest.mark.parametrize("newline", [b"\n", b""])
@pytest.mark.parametrize("limit", [20, 90])
def test_a_line_beyond_the_limit(path: Path, monkeypatch: pytest.MonkeyPatch, newline: bytes, limit: int) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", limit)
    monkeypatch.setattr(jsonl, "KEPT_OF_A_LONG_LINE", 10)
    long = b'{"a":"' + b"x" * 100 + b'"}'
    before, entry, *after = read(path, b'{"a":1}\n' + long + newline + (b'{"a":2}' if newline else b""))
    assert before.record == {"a": 1}
    assert "longer than" in reason(entry)
    assert (entry.line, entry.offset) == (2, 8)
    assert (entry.raw or b"")[:10] == long[:10]
    if vars(forensics.compression)["PIECE"] == 7:
        assert len(entry.raw or b"") == 10, "more than the limit is never held"
    assert isinstance(entry.record, Rejected)
    assert (entry.record.length, entry.record.sha256) == (len(long), hashlib.sha256(long).hexdigest())
    assert [(one.record, one.line, one.offset) for one in after] == ([({"a": 2}, 3, 9 + len(long))] if newline else [])


@pytest.mark.parametrize("pack", ["gzip", "zstandard"])
def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str) -> None:
    monkeypatch.setattr(forensics.compression, "RATIO_COUNTS_FROM", 1 << 20)
    bomb = PACK[pack](b'{"kind":"event"}\n' + b"\n" * (8 << 20))
    with pytest.raises(ForensicsError, match="unpacks to more than"):
        read(tmp_path / "bomb", bomb)
    monkeypatch.setattr(forensics.compression, "MAX_RATIO", 1 << 30)
    assert len(read(tmp_path / "bomb", bomb)) == 1
    monkeypatch.setattr(forensics.compression, "MAX_UNPACKED_BYTES", 4 << 20)
    with pytest.raises(ForensicsError, match="unpacks to more than"):
        read(tmp_path / "bomb", bomb)


def test_the_head_of_a_bomb_is_bounded() -> None:
    for pack in ("gzip", "zstandard"):
        bomb = PACK[pack](b"\n" * (256 << 20))
        tracemalloc.start()
        try:
            assert len(unpacked_head(bomb)) <= forensics.compression.PIECE
            assert tracemalloc.get_traced_memory()[1] < 80 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (b'{"kind":"event"}\n', True),
        (b'\xef\xbb\xbf{"kind":"event"}', True),
        (b'bad\n{"a":1}\n', True),
        (b'{"kind":"st', True),
        (b'{"a":1', False),
        (b'{\n"kind":"event"\n}', False),
        (b'[{"kind":"event"}]', False),
        (b'{\n"events": [\n{"kind":"event"}\n]\n}', False),
        (b'{"format":"forensics.verdict/1"}', False),
        (b'{"kind":"event","format":3}', True),
        (b"kind", False),
    ],
)
def test_detect(content: bytes, taken: bool, pack: str) -> None:
    assert jsonl.detect(PACK[pack](content)) is taken


OBJECTS = st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=9), max_size=3)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(OBJECTS | st.none(), max_size=20), pack=st.sampled_from(sorted(PACK)))
def test_what_was_written_is_read(path: Path, lines: list[dict[str, Any] | None], pack: str) -> None:
    content = b"".join((b"" if line is None else json.dumps(line, ensure_ascii=False).encode("utf-8", "replace")) + b"\n" for line in lines)  # fmt: skip  # noqa: E501
    entries = read(path, PACK[pack](content))
    assert [entry.line for entry in entries] == [n for n, line in enumerate(lines, 1) if line is not None]
    for entry in entries:
        assert entry.raw is not None
        assert content[entry.offset : entry.offset + len(entry.raw) + 1] == entry.raw + b"\n"
