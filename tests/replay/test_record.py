"""The writer of contract lines: gapless, never in the way, and honest about what it lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from replay import totals, writer
from replay.policy import Policy
from replay.record import Recorder, raw_prompt_sha256, token_ids_sha256

ROOT = Path(writer.__file__).parents[1]


@pytest.fixture
def recorder(tmp_path):
    recorder = Recorder(tmp_path, "toy")
    yield recorder
    recorder.close()


def lines(recorder):
    """Return the lines of a run, without the recorder's account of itself."""
    return [line for line in all_lines(recorder) if line.get("what") != "recorder_cost"]


def all_lines(recorder):
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
    assert recorder.totals.dropped == recorder.totals.faults == 0


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


@pytest.mark.parametrize("odd", [{"x": float("nan")}, {1: 1, "a": {}} | {(): 0}])
def test_a_record_that_cannot_be_encoded_is_counted_and_the_next_is_written(recorder, odd):
    recorder.write("event", what="odd", detail=odd)
    recorder.write("event", what="fine")
    recorder.close()
    assert [line["what"] for line in lines(recorder)] == ["recorder_fault", "fine"]
    assert recorder.totals.faults == 1


def test_a_record_that_no_policy_understands_does_not_end_the_recording(tmp_path):
    recorder = Recorder(tmp_path, "toy", policy=Policy(ring_s=5.0, triggers=("thin_margin",)))
    recorder.write("step", engine_step=0, margin="thin", top_logits=[1.0], logit_dtype="bfloat16")
    recorder.write("event", what="fine")
    recorder.close()
    assert [line["what"] for line in lines(recorder)][:2] == ["recorder_fault", "fine"]


def stuck(recorder, monkeypatch):
    """Stop the writer thread where it would take the next record; return what lets it go on."""
    go = threading.Event()
    write_queued = recorder._write_queued
    monkeypatch.setattr(recorder, "_write_queued", lambda waiting: (go.wait(20), write_queued(waiting)))
    time.sleep(writer.FLUSH_SECONDS * 2)
    return go


def test_a_full_queue_drops_and_counts(recorder, monkeypatch):
    monkeypatch.setattr(writer, "QUEUE_LIMIT", 10)
    go = stuck(recorder, monkeypatch)
    for number in range(100):
        recorder.write("event", what=str(number))
    go.set()
    recorder.close()
    written = lines(recorder)
    assert recorder.totals.dropped == 90
    assert [line["what"] for line in written] == [*map(str, range(10)), "drops"]
    assert written[-1]["detail"] == {"dropped": 90}


def test_what_comes_after_the_end_is_counted_on_record(recorder):
    recorder.write("event", what="in time")
    recorder.close()
    for _ in range(3):
        recorder.write("event", what="too late")
    recorder.close()
    recorder.close()
    assert [line["what"] for line in lines(recorder)] == ["in time", "drops"]
    assert lines(recorder)[-1]["detail"] == {"dropped": 3}
    assert [line["seq"] for line in all_lines(recorder)] == [0, 1, 2]


def test_drops_of_the_last_moment_are_on_record(tmp_path):
    code = (
        "import sys; from pathlib import Path; from replay.record import Recorder\n"
        "r = Recorder(Path(sys.argv[1]), 'toy'); r.write('event', what='a'); r.close(); r.write('event', what='b')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    (path,) = tmp_path.glob("*.jsonl")
    assert json.loads(path.read_bytes().splitlines()[-1])["detail"] == {"dropped": 1}


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


def test_a_full_disk_loses_no_line_that_fits_later(recorder):
    recorder._segments._file = disk = Full(recorder._segments._file)
    recorder.write("event", what="while full")
    recorder.flush(0.5)
    assert recorder.path.read_bytes() == b""
    disk.full = False
    recorder.write("event", what="later")
    recorder.close()
    assert [(line["what"], line["seq"]) for line in lines(recorder)] == [("while full", 0), ("later", 1)]


def test_a_disk_that_stays_full_is_said(recorder, capsys):
    recorder._segments._file = Full(recorder._segments._file)
    recorder.write("event", what="lost")
    recorder.close()
    assert "the disk took no more" in capsys.readouterr().err


def test_flush_returns_when_the_record_is_on_disk(recorder):
    recorder.write("event", what="now")
    recorder.flush()
    assert [line["what"] for line in lines(recorder)] == ["now"]


def test_a_killed_process_leaves_whole_lines(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from replay.record import Recorder\n"
        "r = Recorder(Path(sys.argv[1]), 'toy')\n"
        "n = 0\n"
        "while True:\n"
        "    r.write('event', what='x' * 200, detail={'n': n}); n += 1; time.sleep(0.0005)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
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
    assert off.path != on.path
    off.close()
    on.close()


def test_a_forked_child_leaves_the_parents_file_alone(tmp_path):
    recorder = Recorder(tmp_path, "toy")
    recorder.write("event", what="before the fork")
    recorder.flush()
    before = recorder.path.read_bytes()
    child = os.fork()
    if child == 0:
        recorder.write("event", what="of the child")
        recorder.wake()
        recorder.flush(1)
        recorder.close()
        recorder.write("event", what="of the child, late")
        recorder.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert recorder.path.read_bytes() == before
    recorder.close()
    assert [line["what"] for line in lines(recorder)] == ["before the fork"]


def test_the_cost_is_on_record_at_the_end(recorder):
    @recorder.guard
    def hook():
        time.sleep(0.01)

    hook()
    recorder.write("batch", engine_step=0)
    recorder.write("step", engine_step=0, req_id="a")
    recorder.flush()
    before = recorder.path.stat().st_size
    recorder.close()
    cost = all_lines(recorder)[-1]
    assert cost["what"] == "recorder_cost"
    assert cost["detail"]["kinds"] == {"batch": 1, "step": 1}
    assert cost["detail"]["bytes"] == before
    assert cost["detail"]["hook_calls"] == 1
    assert 0.01 <= cost["detail"]["hook_s"] <= cost["detail"]["wall_s"]
    assert cost["detail"]["writer_cpu_s"] > 0


def test_the_cost_is_on_record_now_and_then_while_there_is_something_to_tell(recorder, monkeypatch):
    monkeypatch.setattr(totals, "STATUS_SECONDS", 0.0)
    for number in range(3):
        recorder.write("event", what=str(number))
        recorder.flush()
    time.sleep(writer.FLUSH_SECONDS * 3)  # an idle server writes nothing
    recorder.close()
    told = [line["detail"]["kinds"] for line in all_lines(recorder) if line["what"] == "recorder_cost"]
    assert told == [{"event": 1}, {"event": 2}, {"event": 3}]


def test_the_engine_record_says_what_is_kept(tmp_path):
    policy = Policy(sample=4, ring_s=2.0, triggers=("preemption",), keep_mb=100.0)
    recorder = Recorder(tmp_path, "toy", policy=policy)
    recorder.write("engine", engine="toy")
    recorder.write("engine", weights_sha256="00")
    recorder.close()
    first, second = lines(recorder)
    assert first["recording"] == {
        "compress": "none", "segment_mb": 64.0, "segment_s": 3600.0, "keep_mb": 100.0, "ring_s": 2.0,
        "triggers": ["preemption"], "sample": 4,
    }  # fmt: skip
    assert "recording" not in second


SIGNAL = Policy(ring_s=60.0, triggers=("signal",))


def test_a_signal_is_a_trigger_and_whoever_had_it_before_gets_it_too(tmp_path):
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: seen.append(number))
    try:
        recorder = Recorder(tmp_path, "toy", policy=SIGNAL)
        recorder.write("step", engine_step=0, req_id="a")
        os.kill(os.getpid(), signal.SIGUSR2)
        recorder.close()
        os.kill(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == [signal.SIGUSR2] * 2
    assert [line.get("what", line["kind"]) for line in lines(recorder)] == [
        "signal", "trigger", "step", "trigger_window_end"
    ]  # fmt: skip
    assert recorder.totals.dropped == 0, "a signal after the end is no loss"


def test_where_signals_cannot_be_handled_it_is_said(tmp_path, capsys):
    before, made = signal.getsignal(signal.SIGUSR2), []
    thread = threading.Thread(target=lambda: made.append(Recorder(tmp_path, "toy", policy=SIGNAL)))
    thread.start()
    thread.join()
    (recorder,) = made
    recorder.write("engine", engine="toy")
    recorder.close()
    assert signal.getsignal(signal.SIGUSR2) is before
    assert "outside of the main thread" in capsys.readouterr().err
    limits, engine = lines(recorder)
    assert "main thread" in limits["detail"]["not_observed"][0]
    assert "triggers" not in engine["recording"]


def test_the_hash_of_ids_is_the_contracts():
    assert token_ids_sha256([1, 2, 3]) == "4636993d3e1da4e9d6b8f87b79e8f7c6d018580d52661950eabc3845c5897a4d"


def test_the_hash_of_a_prompt_is_the_same_for_gateway_and_engine():
    # printf 'Grüße' | sha256sum
    assert raw_prompt_sha256("Grüße") == "f83e039796c6453a10f5519e39fd113901572316a1a8ea07cb525d2801dfd074"
    one = raw_prompt_sha256([{"role": "user", "content": "Grüße"}])
    assert one == raw_prompt_sha256([{"content": "Grüße", "role": "user"}])
    # printf '[{"content":"Grüße","role":"user"}]' | sha256sum
    assert one == "0b6db099fdee2211017d5bfdf2ed7b5d53e8a5ae65d5b04078199e7ccb5332e8"
