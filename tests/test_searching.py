"""Finding a request by what a person knows: a time, a replica, a prompt, a piece of the answer."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING

import pytest

from forensics.errors import ForensicsError
from forensics.incidents import incidents
from forensics.load import load
from forensics.searching import Marks, Scope, find, instant, part_of_hash, prompt_hashes, scope
from forensics.store import Store
from forensics.timeline import Thresholds
from tests.story import Story

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOON = 1795435200.0
"""2026-11-23T12:00Z"""
SAID = "Why is the sky blue?"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    engines = [
        {
            "kind": "engine",
            "run_id": run,
            "replica_id": replica,
            "model_id": "/models/Tiny-1",
            "served_model_name": name,
        }
        for run, replica, name in (("r", "p", "tiny"), ("s", "q", None))
    ]
    requests = [
        {"kind": "request", "run_id": "r", "replica_id": "p", "req_id": "early", "arrival_ts": NOON,
         "finish_ts": NOON + 9, "finish_reason": "stop",
         "raw_prompt_sha256": hashlib.sha256(SAID.encode()).hexdigest().upper()},
        {"kind": "request", "run_id": "s", "replica_id": "q", "req_id": "late", "external_req_id": "chat-7",
         "arrival_ts": NOON + 3600, "finish_ts": NOON + 3700, "output_text": "It scatters.", "output_token_ids": [1],
         "finish_reason": "length"},
        {"kind": "request", "run_id": "s", "replica_id": "q", "req_id": "timeless"},
    ]  # fmt: skip
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in engines + requests), encoding="utf-8")
    with Store.in_memory() as opened:
        load([path], opened)
        yield opened


@pytest.mark.parametrize(
    ("since", "until", "found"),
    [
        (None, None, {"early", "late", "timeless"}),
        ("12:00", "12:30", {"early"}),
        ("12:00:10", "12:30", set()),
        ("13:01", None, {"late"}),
        ("2h", None, {"early", "late"}),
        ("1h", "1m", {"late"}),
        ("1h", "5m", set()),
        (None, "2026-11-23T12:59:59Z", {"early"}),
        ("2026-11-23T14:00+01:00", None, {"late"}),
        ("2026-11-23", "2026-11-24", {"early", "late"}),
        (str(NOON + 10), str(NOON + 3600), {"late"}),
    ],
)
def test_times(store: Store, since: str | None, until: str | None, found: set[str]) -> None:
    assert set(find(store, scope(store, since, until))["req_id"]) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "25:00",
        "12:61",
        "2026-13-01",
        "12",
        "1.5h",
        "-2h",
        "99999999999d",
        "1e9",
        "nan",
        "12:00; drop",
        "٣h",
    ],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ForensicsError) as error:
        instant(text, NOON, "--since")
    assert error.value.exit_code == 2


def test_a_time_without_a_zone_is_utc_wherever_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert instant("2026-11-23T12:00", None, "--since") == instant("12:00", NOON + 60, "--since") == NOON
    time.tzset()


def test_times_that_cannot_be_told(store: Store) -> None:
    with pytest.raises(ForensicsError, match="is after") as error:
        scope(store, "13:00", "12:00")
    assert error.value.exit_code == 2
    with Store.in_memory() as empty, pytest.raises(ForensicsError, match="no request on record has a time"):
        scope(empty, "2h")


@pytest.mark.parametrize(
    ("within", "marks", "found"),
    [
        (Scope(replica="q"), Marks(), {"late", "timeless"}),
        (Scope(model="TINY-1"), Marks(), {"early", "late", "timeless"}),
        (Scope(model="tiny"), Marks(finish="stop"), {"early"}),
        (Scope(), Marks(part_of_id="hat-"), {"late"}),
        (Scope(), Marks(part_of_id="arl"), {"early"}),
        (Scope(), Marks(prompts=prompt_hashes(SAID, None)), {"early"}),
        (Scope(), Marks(prompts=prompt_hashes(SAID + " ", None)), set()),
        (Scope(), Marks(prompt_sha256=hashlib.sha256(SAID.encode()).hexdigest()[:10]), {"early"}),
        (Scope(), Marks(output="scatter"), {"late"}),
        (Scope(), Marks(output_sha256=hashlib.sha256(b"\1\0\0\0").hexdigest()[:8].upper()), {"late"}),
        (Scope(), Marks(part_of_id="' or 1=1 --"), set()),
        (Scope(replica="%"), Marks(), set()),
    ],
)
def test_marks(store: Store, within: Scope, marks: Marks, found: set[str]) -> None:
    assert set(find(store, within, marks)["req_id"]) == found


def test_the_limit_says_what_it_left_out(store: Store) -> None:
    rows = find(store, Scope(), limit=1)
    assert (rows["req_id"].to_list(), rows["found"].to_list()) == (["early"], [3])


def test_a_file_of_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(SAID.encode() + b"\r\n")
    assert hashlib.sha256(SAID.encode()).hexdigest() in (prompt_hashes(None, tmp_path / "prompt.txt") or ())
    for text, file, code in ((None, tmp_path / "none", 3), ("x", tmp_path / "prompt.txt", 2)):
        with pytest.raises(ForensicsError) as error:
            prompt_hashes(text, file)
        assert error.value.exit_code == code


@pytest.mark.parametrize("text", ["abc", "xyzxyzxyz", "a" * 65, ""])
def test_what_is_no_hash(text: str) -> None:
    with pytest.raises(ForensicsError, match="is no sha256") as error:
        part_of_hash(text, "--output-sha256")
    assert error.value.exit_code == 2


def test_incidents_within_a_scope(tmp_path: Path) -> None:
    calm = Story("calm").engine().request("idle", (1, 2, 3))
    busy = Story("busy").engine()
    busy.request("load-a", (1, 2, 9), rows=4, drift=0.25, arrival_ts=5000.0)
    busy.request("load-b", (1, 2, 9), rows=2, drift=0.25, arrival_ts=6000.0)
    for record in busy.records:
        record["replica_id"] = "r1"
    with calm.tell(tmp_path / "s", busy) as store:

        def listed(within: Scope) -> list[str]:
            return [one.incident.target.request["req_id"] for one in incidents(store, Thresholds(), within)]

        assert listed(Scope()) == ["load-b"], "the calmest of its output"
        assert listed(Scope(until=5500.0)) == ["load-a"], "the reference may lie anywhere, the divergent one may not"
        assert listed(Scope(since=5500.0, replica="r1")) == ["load-b"]
        assert listed(Scope(replica="r0")) == listed(Scope(model="other")) == listed(Scope(since=7000.0)) == []
