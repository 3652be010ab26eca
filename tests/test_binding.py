"""Records without a run: what they say reaches every engine request that they speak of, in any order, and no other."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest

import forensics.binding
from forensics.binding import bind
from forensics.digest import asked_sha256, input_sha256
from forensics.incident import find_request
from forensics.load import load
from forensics.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CFG = {"temperature": 0}
ENGINE: dict[str, Any] = {
    "kind": "request", "run_id": "r", "replica_id": "p", "req_id": "chat-1-ab", "external_req_id": "chat-1",
    "effective_token_ids_sha256": "aa", "arrival_ts": 5.0, "seq": 3, "writer": "w",
}  # fmt: skip
GATEWAY: dict[str, Any] = {
    "kind": "request", "req_id": "chat-1", "raw_prompt_sha256": "cc", "tenant_sha256": "tt", "truncated": True,
    "arrival_ts": 4.5, "shaping_events": [{"what": "truncation"}],
}  # fmt: skip
API: dict[str, Any] = {
    "kind": "request", "req_id": "chat-1-ab", "external_req_id": "chat-1", "replica_id": "p",
    "decode_cfg_requested": CFG, "decode_cfg_applied": CFG,
}  # fmt: skip


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.in_memory() as opened:
        yield opened


def ingest(store: Store, path: Path, *records: dict[str, Any]) -> Any:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    (summary,) = load([path], store)
    assert summary.read == summary.stored + summary.merged + summary.duplicates + summary.quarantined
    return summary


def whole(store: Store) -> list[dict[str, Any]]:
    """Return all requests as readers see them, without what depends on the file they stood in."""
    rows = store.run("SELECT req_id FROM request ORDER BY run_id, req_id")
    found = [row for (name,) in rows for row in store.ask("request", req_id=name).to_dicts() if row["req_id"] == name]
    return [
        {key: value for key, value in row.items() if key not in ("source_id", "source_path", "line")} for row in found
    ]


@pytest.mark.parametrize("files", [1, 3])
def test_any_order_in_one_file_or_many(tmp_path: Path, files: int) -> None:
    seen = set()
    for number, order in enumerate(itertools.permutations([ENGINE, GATEWAY, API])):
        with Store.in_memory() as store:
            groups = [order] if files == 1 else [(one,) for one in order]
            paths = [tmp_path / f"{number}-{n}.jsonl" for n in range(len(groups))]
            for path, group in zip(paths, groups, strict=True):
                assert ingest(store, path, *group).quarantined == 0
            before = whole(store)
            for path in paths:
                (again,) = load([path], store)
                assert (again.stored, again.merged) == (0, 0)
            assert whole(store) == before
            seen.add(repr(before))
    (row,) = before
    assert len(seen) == 1
    assert (row["run_id"], row["req_id"], row["tenant_sha256"], row["truncated"]) == ("r", "chat-1-ab", "tt", True)
    assert row["asked_sha256"] == asked_sha256("cc", CFG)
    assert row["input_sha256"] == input_sha256("aa", CFG)
    assert (row["arrival_ts"], row["contradicted"], row["seq"]) == (5.0, [], 3)


def test_one_id_of_a_client_and_many_tries(tmp_path: Path, store: Store) -> None:
    again = ENGINE | {"req_id": "chat-1-cd", "seq": 4}
    later = ENGINE | {"run_id": "s", "replica_id": "q", "req_id": "chat-1-ef"}
    ingest(
        store,
        tmp_path / "a.jsonl",
        ENGINE,
        again,
        later,
        GATEWAY,
        API,
        ENGINE | {"req_id": "x", "external_req_id": "y"},
    )
    rows = {row["req_id"]: row for row in whole(store)}
    assert {name for name, row in rows.items() if row["tenant_sha256"] == "tt"} == {
        "chat-1-ab",
        "chat-1-cd",
        "chat-1-ef",
    }
    assert {name for name, row in rows.items() if row["decode_cfg_requested"]} == {"chat-1-ab"}, (
        "a part that states the engine's own id speaks of that request alone"
    )
    assert "chat-1" not in rows
    assert find_request(store, "chat-1-cd")["truncated"] is True
    parts = store.ask("parts", run_id="r", replica_id="p", req_id="chat-1-ab").to_dicts()
    assert [part["line"] for part in parts] == [4, 5]


def test_the_replica_that_a_part_states_counts(tmp_path: Path, store: Store) -> None:
    ingest(store, tmp_path / "a.jsonl", ENGINE, GATEWAY | {"replica_id": "other"})
    assert [(row["run_id"], row["tenant_sha256"]) for row in whole(store)] == [("", "tt"), ("r", None)]
    ingest(store, tmp_path / "b.jsonl", GATEWAY | {"replica_id": "p", "tenant_sha256": "uu"})
    assert [(row["run_id"], row["tenant_sha256"]) for row in whole(store)] == [("", "tt"), ("r", "uu")]


def test_a_contradiction_is_named_and_the_engine_stands(tmp_path: Path, store: Store) -> None:
    engine = ENGINE | {"truncated": False, "effective_token_ids_sha256": "0" * 64}
    summary = ingest(store, tmp_path / "a.jsonl", engine, GATEWAY | {"effective_token_ids": [1, 2]})
    assert (summary.stored, summary.quarantined) == (2, 0)
    (row,) = whole(store)
    assert (row["truncated"], row["tenant_sha256"], row["effective_token_ids"]) == (False, "tt", None)
    assert sorted(row["contradicted"]) == ["effective_token_ids_sha256", "truncated"]
    (told,) = store.ask("contradicted").to_dicts()
    assert (told["req_id"], told["line"], told["part_line"]) == ("chat-1-ab", 1, 2)


def test_parts_that_contradict_each_other_say_nothing_there(tmp_path: Path, store: Store) -> None:
    ingest(store, tmp_path / "a.jsonl", ENGINE, GATEWAY, GATEWAY | {"replica_id": "p", "tenant_sha256": "uu"})
    (row,) = whole(store)
    assert (row["tenant_sha256"], row["raw_prompt_sha256"], row["contradicted"]) == (None, "cc", ["tenant_sha256"])


def test_fields_that_the_contract_does_not_know_never_contradict(tmp_path: Path, store: Store) -> None:
    ingest(store, tmp_path / "a.jsonl", ENGINE | {"scheduler": "x"}, GATEWAY | {"route": "y"})
    (row,) = whole(store)
    assert (row["contradicted"], row["tenant_sha256"]) == ([], "tt")


def test_an_engine_record_that_comes_later_is_not_contradicted_by_its_part(tmp_path: Path, store: Store) -> None:
    ingest(store, tmp_path / "a.jsonl", ENGINE, GATEWAY)
    part = {"kind": "request", "run_id": "r", "replica_id": "p", "req_id": "chat-1-ab", "truncated": False}
    assert ingest(store, tmp_path / "b.jsonl", part).merged == 1
    (row,) = whole(store)
    assert (row["truncated"], row["contradicted"]) == (False, ["truncated"])


def test_a_request_without_run_stays_one(tmp_path: Path, store: Store) -> None:
    flat = GATEWAY | {"req_id": "alone"}
    own = GATEWAY | {"req_id": "chat-1"}
    steps = {"kind": "step", "req_id": "chat-1", "step": 0}
    ingest(store, tmp_path / "a.jsonl", ENGINE, flat, own)
    assert [row["req_id"] for row in whole(store)] == ["alone", "chat-1-ab"]
    ingest(store, tmp_path / "b.jsonl", steps)
    assert [(row["req_id"], row["tenant_sha256"]) for row in whole(store)] == [
        ("alone", "tt"), ("chat-1", "tt"), ("chat-1-ab", None),
    ], "what has steps of its own is a request, no part"  # fmt: skip


def test_digests_in_many_rounds(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forensics.binding, "DIGESTS_AT_ONCE", 2)
    engines = [ENGINE | {"req_id": f"e{n}", "external_req_id": f"c{n}", "decode_cfg_requested": CFG} for n in range(5)]
    parts = [GATEWAY | {"req_id": f"c{n}", "raw_prompt_sha256": f"{n}"} for n in range(5)]
    ingest(store, tmp_path / "a.jsonl", *engines, *parts)
    assert [row["asked_sha256"] for row in whole(store)] == [asked_sha256(f"{n}", CFG) for n in range(5)]


def test_a_binding_that_was_cut_off_is_made_up_for(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(_: Store) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("forensics.load.bind", dead)
        with pytest.raises(KeyboardInterrupt):
            ingest(store, tmp_path / "a.jsonl", ENGINE, GATEWAY)
    assert len(whole(store)) == 2
    load([tmp_path / "a.jsonl"], store)
    assert len(whole(store)) == 1
    store.run("DELETE FROM binding")
    bind(store)
    assert len(whole(store)) == 2, "nothing changed since: nothing is computed"
