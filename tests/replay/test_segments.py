"""The files of a run: each stands alone, none is lost in silence, and a kill leaves what was written readable."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from replay import segments
from replay.policy import Policy
from replay.record import Recorder

ROOT = Path(segments.__file__).parents[1]
PACKED = ["gzip", "zstd"]


def unpacked(path):
    """Return the bytes of a file as far as it goes, by other code than that which wrote it."""
    data, out = path.read_bytes(), b""
    if path.suffix == ".jsonl":
        return data
    if path.suffix == ".zst":
        return subprocess.run(
            [sys.executable, "-c", "import sys, zstandard; r = zstandard.ZstdDecompressor().stream_reader("
             "open(sys.argv[1], 'rb'), read_across_frames=True); sys.stdout.buffer.write(r.read())", str(path)],
            capture_output=True, check=True,
        ).stdout  # fmt: skip
    while data:
        stream = zlib.decompressobj(31)
        out += stream.decompress(data)
        data = stream.unused_data
    return out


def lines(path):
    return [json.loads(line) for line in unpacked(path).splitlines()]


def recorded(directory, policy, batches=5, rows=20):
    """Record an engine in parts and some engine steps, a flush after each; return the finished recorder."""
    recorder = Recorder(directory, "toy", policy=policy)
    recorder.write("engine", engine="toy")
    recorder.write("engine", weights_sha256="00")
    for step in range(batches):
        recorder.write("batch", engine_step=step, batch_size=rows)
        for row in range(rows):
            recorder.write("step", engine_step=step, req_id=f"r{row}", step=step, token_tag=f"{hash((step, row)):x}")
        recorder.flush()
    recorder.close()
    return recorder


@pytest.mark.parametrize("compress", ["none", *PACKED])
def test_a_segment_stands_alone(tmp_path, compress):
    run = recorded(tmp_path, Policy(compress=compress, segment_mb=0.0001))
    paths = sorted(tmp_path.glob("*.jsonl*"))
    assert len(paths) == 5
    assert [path.name for path in paths] == [
        f"{run.run_id}-{number:04d}{segments.SUFFIX[compress]}" for number in range(5)
    ]
    assert run.path == paths[-1]
    whole = [lines(path) for path in paths]
    for part in whole:
        assert [line["kind"] for line in part[:2]] == ["engine", "engine"]
        assert part[1]["weights_sha256"] == "00"
        own = [{name: value for name, value in line.items() if name != "seq"} for line in part[:2]]
        assert own == [{name: value for name, value in line.items() if name != "seq"} for line in whole[0][:2]]
    seqs = [line["seq"] for part in whole for line in part]
    assert seqs == list(range(5 * 21 + 5 * 2 + 1))


def test_a_new_segment_by_age_but_none_for_an_idle_server(tmp_path):
    recorder = Recorder(tmp_path, "toy", policy=Policy(segment_s=0.3))
    time.sleep(0.4)  # a file with nothing in it is not old
    recorder.write("engine", engine="toy")
    recorder.flush()
    time.sleep(0.8)
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    recorder.write("event", what="later")
    recorder.close()
    first, second = sorted(tmp_path.glob("*.jsonl"))
    assert [line["kind"] for line in lines(first)] == ["engine"]
    assert [line.get("what") for line in lines(second)] == [None, "later", "recorder_cost"]


def deletions(path):
    return [line["detail"] for line in lines(path) if line.get("what") == "segments_deleted"]


def test_the_oldest_segments_go_beyond_the_size_and_it_is_on_record(tmp_path):
    other = tmp_path / "toy-0-1-0000.jsonl"
    other.write_text('{"kind":"engine","run_id":"toy-0-1"}\n')
    run = recorded(tmp_path, Policy(segment_mb=0.004, keep_mb=0.010), batches=8)
    paths = sorted(path for path in tmp_path.glob("*.jsonl") if path != other)
    assert sum(path.stat().st_size for path in paths[:-1]) <= 0.010 * (1 << 20)
    assert paths[0].name != f"{run.run_id}-0000.jsonl", "nothing was deleted: the test tests nothing"
    last = deletions(paths[-1])[-1]
    assert last["segments"] == int(paths[0].stem[-4:])
    assert last["records"] == lines(paths[0])[0]["seq"], "where the rest begins"
    assert last["bytes"] > 0
    assert other.exists(), "another run's files are not ours to delete"


def test_old_segments_go_while_nothing_happens(tmp_path):
    recorder = Recorder(tmp_path, "toy", policy=Policy(segment_mb=0.0001, keep_s=0.3))
    recorder.write("event", what="x" * 500)
    recorder.flush()
    recorder.write("event", what="next")
    recorder.flush()
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and len(list(tmp_path.glob("*.jsonl"))) > 1:
        time.sleep(0.05)
    recorder.close()
    (path,) = tmp_path.glob("*.jsonl")
    assert [one["files"] for one in deletions(path)] == [[f"{recorder.run_id}-0000.jsonl"]]


def test_a_segment_that_cannot_be_deleted_is_told(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", denied)
    run = recorded(tmp_path, Policy(segment_mb=0.004, keep_mb=0.001))
    told = [line["detail"] for line in lines(run.path) if line.get("what") == "recorder_fault"]
    assert "Permission denied" in told[0]["fault"]


@pytest.mark.parametrize("compress", PACKED)
def test_what_was_flushed_can_be_read_after_a_kill(tmp_path, compress):
    code = (
        "import os, sys; from pathlib import Path; from replay.policy import Policy\n"
        "from replay.record import Recorder\n"
        f"r = Recorder(Path(sys.argv[1]), 'toy', policy=Policy(compress={compress!r}))\n"
        "for n in range(3000): r.write('event', what='x' * 50, detail={'n': n})\n"
        "r.flush(); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    (path,) = tmp_path.glob("*.jsonl.*")
    found = lines(path)
    assert [line["detail"]["n"] for line in found] == list(range(3000))
    assert path.stat().st_size < len(unpacked(path)) / 4


@pytest.mark.parametrize("compress", PACKED)
def test_what_is_added_after_the_end_is_read_as_one_file(tmp_path, compress):
    recorder = Recorder(tmp_path, "toy", policy=Policy(compress=compress))
    recorder.write("event", what="in time")
    recorder.close()
    recorder.write("event", what="late")
    recorder.close()
    assert [line["what"] for line in lines(recorder.path)] == ["in time", "recorder_cost", "drops"]


def test_an_idle_flush_adds_nothing(tmp_path):
    recorder = Recorder(tmp_path, "toy", policy=Policy(compress="gzip"))
    recorder.write("event", what="once")
    recorder.flush()
    size = recorder.path.stat().st_size
    for _ in range(5):
        recorder.flush()
    assert recorder.path.stat().st_size == size
    recorder.close()
    assert gzip.decompress(recorder.path.read_bytes()).count(b"\n") == 2


def test_a_disk_that_is_full_at_the_border_of_two_segments_loses_nothing(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path, "toy", policy=Policy(compress="gzip", segment_mb=0.00001))
    recorder.write("event", what="first")
    recorder.flush()
    opened, Path.open = Path.open, lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    try:
        recorder.write("event", what="second")
        recorder.flush(0.6)
    finally:
        Path.open = opened
    recorder.write("event", what="third")
    recorder.close()
    found = [line for path in sorted(tmp_path.glob("*.gz")) for line in lines(path)]
    assert [line["seq"] for line in found] == list(range(len(found)))
    assert [line["what"] for line in found if line["what"] != "recorder_cost"] == ["first", "second", "third"]
