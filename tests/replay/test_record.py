"""The writer of contract lines: gapless, never in the way, and honest about what it lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from replay import record
from replay.record import Recorder, token_ids_sha256


@pytest.fixture
def recorder(tmp_path):
    recorder = Recorder(tmp_path, "toy")
    yield recorder
    recorder.close()


def lines(recorder):
    return [json.loads(line) for line in recorder.path.read_bytes().splitlines()]


def test_lines_are_gapless_and_carry_the_envelope(recorder):
    threads = [
        threading.Thread(target=lambda n=n: [recorder.write("event", what=f"{n}-{i}") for i in range(500)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close()
    written = lines(recorder)
    assert [line["seq"] for line in written] == list(range(2000))
    assert {line["run_id"] for line in written} == {recorder.run_id}
    assert all(line["ts"] and line["mono_ns"] and line["clock_id"] and line["writer"] for line in written)
    assert recorder.dropped == recorder.faults == 0


def test_absent_stays_absent(recorder):
    recorder.write("step", req_id="a", step=0, margin=None, token_index=0)
    recorder.close()
    assert "margin" not in lines(recorder)[0]
    assert lines(recorder)[0]["token_index"] == 0


def test_a_fault_of_a_hook_is_written_and_goes_no_further(recorder):
    @recorder.guard
    def hook():
        raise RuntimeError("broken on purpose")

    assert hook() is None
    recorder.close()
    (event,) = lines(recorder)
    assert event["what"] == "recorder_fault"
    assert "broken on purpose" in event["detail"]["fault"]


def test_a_record_that_cannot_be_encoded_is_counted_and_the_next_is_written(recorder):
    recorder.write("event", what="odd", detail={"x": float("nan")})
    recorder.write("event", what="fine")
    recorder.close()
    assert [line["what"] for line in lines(recorder)] == ["recorder_fault", "fine"]
    assert recorder.faults == 1


def test_a_full_queue_drops_and_counts(recorder, monkeypatch):
    monkeypatch.setattr(record, "QUEUE_LIMIT", 10)
    with recorder._lock:  # the writer thread cannot work
        time.sleep(record.FLUSH_SECONDS * 2)
        for number in range(100):
            recorder.write("event", what=str(number))
        dropped = recorder.dropped
    recorder.close()
    assert dropped >= 80
    written = lines(recorder)
    assert [line["detail"] for line in written if line["what"] == "drops"] == [{"dropped": dropped}]
    assert len(written) == 100 - dropped + 1


def test_a_full_disk_loses_no_line_that_fits_later(recorder):
    class Full:
        """A disk that is full for a while."""

        def __init__(self, file):
            self.file, self.full = file, True

        def write(self, data):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def close(self):
            self.file.close()

    recorder._file = disk = Full(recorder._file)
    recorder.write("event", what="while full")
    recorder.flush(0.5)
    assert recorder.path.read_bytes() == b""
    disk.full = False
    recorder.write("event", what="later")
    recorder.close()
    assert [(line["what"], line["seq"]) for line in lines(recorder)] == [("while full", 0), ("later", 1)]


def test_a_killed_process_leaves_whole_lines(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from replay.record import Recorder\n"
        "r = Recorder(Path(sys.argv[1]), 'toy')\n"
        "n = 0\n"
        "while True:\n"
        "    r.write('event', what='x' * 200, detail={'n': n}); n += 1; time.sleep(0.0005)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(record.__file__).parents[1])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) > 50_000:
        time.sleep(0.05)
    child.kill()
    child.wait()
    (path,) = tmp_path.glob("*.jsonl")
    *whole, torn = path.read_bytes().split(b"\n")
    numbers = [json.loads(line)["detail"]["n"] for line in whole]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 100
    assert torn == b"" or not torn.endswith(b"}\n")


def test_tags_compare_within_a_recording_and_not_across(tmp_path):
    one, same, other = (Recorder(tmp_path / folder, "toy") for folder in ("a", "a", "b"))
    assert one.token_tag(3, 7) == same.token_tag(3, 7)
    assert one.tag_key_id == same.tag_key_id != other.tag_key_id
    assert one.token_tag(3, 7) != other.token_tag(3, 7)
    assert one.token_tag(3, 7) != one.token_tag(4, 7), "a tag tells nothing about another position"
    assert (tmp_path / "a" / ".token_tag_key").stat().st_mode & 0o777 == 0o600
    for recorder in (one, same, other):
        recorder.close()


def test_ids_are_opt_in(tmp_path, monkeypatch):
    monkeypatch.delenv("FORENSICS_RECORD_IDS", raising=False)
    off = Recorder(tmp_path, "toy")
    monkeypatch.setenv("FORENSICS_RECORD_IDS", "1")
    on = Recorder(tmp_path, "toy")
    assert (off.with_ids, on.with_ids) == (False, True)
    off.close()
    on.close()


def test_a_fork_does_not_write_the_parents_lines_again(tmp_path):
    recorder = Recorder(tmp_path, "toy")
    recorder.write("event", what="before the fork")
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    recorder.close()
    assert [line["what"] for line in lines(recorder)] == ["before the fork"]


def test_the_hash_of_ids_is_the_contracts():
    assert token_ids_sha256([1, 2, 3]) == "4636993d3e1da4e9d6b8f87b79e8f7c6d018580d52661950eabc3845c5897a4d"
