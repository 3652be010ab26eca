"""The article's two regime functions, verbatim, and spans."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from forensics.cli.app import app, limits
from forensics.evidence import gather
from forensics.regimes import group_regimes, queue_p95, rank_regimes, worst_rank
from forensics.timeline import Span, Thresholds, regime, regime_extended, spans, transitions
from tests.story import A, Story

if TYPE_CHECKING:
    from pathlib import Path


def article(vram_free_mb, paging_on, isolation_strict, queue_p95_ms):  # type: ignore[no-untyped-def]
    if isolation_strict:
        return "isolation_strict"
    if paging_on:
        return "paging"
    if vram_free_mb < 1024:
        return "memory_pressured"
    if queue_p95_ms > 50:
        return "queue_degraded"
    return "normal"


NUMBERS = st.floats(min_value=0, max_value=1e5)


@given(NUMBERS, st.booleans(), st.booleans(), NUMBERS)
def test_regime_is_the_articles(free: float, paging: bool, strict: bool, queue: float) -> None:
    assert regime(free, paging, strict, queue) == article(free, paging, strict, queue)


@given(NUMBERS, st.booleans(), st.booleans(), NUMBERS, st.sampled_from(range(4)))
def test_unknown_only_if_the_missing_input_could_change_the_result(
    free: float, paging: bool, strict: bool, queue: float, missing: int
) -> None:
    inputs: list[object] = [free, paging, strict, queue]
    inputs[missing] = None
    choices = ((0.0, 1e6), (False, True), (False, True), (0.0, 1e6))[missing]
    possible = {article(*(*inputs[:missing], value, *inputs[missing + 1 :])) for value in choices}
    found = regime(*inputs)  # type: ignore[arg-type]
    assert found == (possible.pop() if len(possible) == 1 else "unknown")


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ((8000, False, False, 0, 0, 0, 16000), "normal"),
        ((8000, False, False, 0, 4000, 3500, 16000), "memory_evaporation"),
        ((8000, True, False, 0, 0, 0, 16000), "paging"),
        ((2000, False, False, 0, 1000, 0, 4000), "memory_pressured"),
        ((8000, False, False, 60, 0, 0, 0), "queue_degraded"),
        ((8000, False, True, 60, 9000, 0, 100), "isolation_strict"),
        ((8000, False, False, 0, None, 0, 16000), "unknown"),
        ((2000, False, False, 0, 0, 0, 0), "normal"),
    ],
)
def test_regime_extended(inputs: tuple[object, ...], expected: str) -> None:
    assert regime_extended(*inputs) == expected  # type: ignore[arg-type]


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_spans_cover_everything_once(states: list[str]) -> None:
    found = spans(states)
    assert [state for span in found for state in span.state * span.steps] == states
    assert all(one.state != other.state for one, other in pairwise(found))
    assert all(one.last + 1 == other.first for one, other in pairwise(found))


def test_span_positions() -> None:
    assert spans(["a", "a", None]) == [Span("a", 0, 1), Span("unknown", 2, 2)]


def test_queue_window_is_ten_seconds() -> None:
    waits = pl.DataFrame({"ts": [0.0, 8.0, 11.0], "queue_ms": [100.0, 10.0, 20.0]})
    batches = pl.DataFrame({"ts": [0.0, 9.0, 11.0, 30.0, None]})
    assert queue_p95(batches, waits) == [100.0, 100.0, 20.0, 0.0, None]
    assert queue_p95(batches, waits.clear()) == [None] * 5, "nobody waited is not the same as nobody looked"


BATCH = {
    "engine_step": 0, "rank": 0, "ts": 5.0, "isolation_mode": "shared", "vram_free_mb": 8000.0, "headroom_mb": None,
    "paging_on": False, "kv_regime": None, "isr_pinned_mb": 0.0, "ckpt_pinned_mb": 0.0, "kv_pool_total_mb": 16000.0,
}  # fmt: skip


def batches(*ranks: dict[str, object]) -> pl.DataFrame:
    """One engine step, a record a rank."""
    rows = [BATCH | {"rank": number} | fields for number, fields in enumerate(ranks)]
    return pl.DataFrame(rows, infer_schema_length=None)


def grouped(*ranks: dict[str, object]) -> dict[str, object]:
    waits = pl.DataFrame({"ts": [5.0], "queue_ms": [1.0]})
    (row,) = group_regimes(rank_regimes(batches(*ranks), waits, None, Thresholds())).to_dicts()
    return row


def test_the_worst_rank_speaks_for_the_group() -> None:
    row = grouped({}, {"paging_on": True, "vram_free_mb": 4000.0}, {"vram_free_mb": 100.0})
    assert (row["regime"], row["regime_rank"]) == ("paging", 1)
    assert (row["regime_paging_on"], row["regime_free_mb"]) == (True, 4000.0), "the inputs are those of that rank"
    assert grouped({}, {})["regime_rank"] == 0
    waits = pl.DataFrame({"ts": [5.0], "queue_ms": [1.0]})
    two = pl.concat([batches({}, {"paging_on": True}), batches({}).with_columns(engine_step=pl.lit(1, pl.Int64))])
    assert worst_rank(rank_regimes(two, waits, None, Thresholds())).select("engine_step", "rank", "regime").rows() == [
        (0, 1, "paging"), (1, 0, "normal"),
    ]  # fmt: skip


def test_the_extended_regime_has_a_worst_rank_of_its_own() -> None:
    row = grouped({"paging_on": True}, {"isr_pinned_mb": 7500.0})
    assert (row["regime"], row["regime_rank"]) == ("paging", 0)
    assert (row["regime_extended"], row["regime_extended_rank"]) == ("memory_evaporation", 1)


@pytest.mark.parametrize(
    ("known", "unknown", "expected"),
    [
        ({"paging_on": True}, {"vram_free_mb": None}, "paging"),
        ({}, {"vram_free_mb": None}, "unknown"),
        ({"vram_free_mb": 100.0}, {"paging_on": None}, "unknown"),
        ({"vram_free_mb": 100.0}, {"vram_free_mb": None}, "memory_pressured"),
    ],
)
def test_a_rank_that_says_nothing_hides_the_group_only_if_it_could_be_worse(
    known: dict[str, object], unknown: dict[str, object], expected: str
) -> None:
    assert grouped(known, unknown)["regime"] == grouped(unknown, known)["regime"] == expected


def article_extended(free, paging, strict, queue, isr, ckpt, pool):  # type: ignore[no-untyped-def]
    effective_free = free - isr - ckpt
    ratio = effective_free / pool if pool else 1.0
    if strict:
        return "isolation_strict"
    if ratio < 0.05:
        return "memory_evaporation"
    if paging:
        return "paging"
    if effective_free < 1024:
        return "memory_pressured"
    if queue > 50:
        return "queue_degraded"
    return "normal"


POOL = st.one_of(st.just(0.0), st.floats(min_value=1.0, max_value=1e5))


@given(NUMBERS, st.booleans(), st.booleans(), NUMBERS, NUMBERS, NUMBERS, POOL, st.sampled_from(range(7)))
def test_the_extended_regime_is_the_articles(
    free: float, paging: bool, strict: bool, queue: float, isr: float, ckpt: float, pool: float, missing: int
) -> None:
    inputs: list[object] = [free, paging, strict, queue, isr, ckpt, pool]
    assert regime_extended(*inputs) == article_extended(*inputs)  # type: ignore[arg-type]
    inputs[missing] = None
    values: list[object] = [False, True] if missing in (1, 2) else [0.0, 1.0, 1024.0, 1e6, 1e12]
    possible = {article_extended(*inputs[:missing], value, *inputs[missing + 1 :]) for value in values}
    found = regime_extended(*inputs)  # type: ignore[arg-type]
    assert found == (possible.pop() if len(possible) == 1 else "unknown")


def states(*rows: dict[str, object]) -> pl.DataFrame:
    base = {
        "regime": "normal", "regime_rank": 0, "regime_free_mb": 8000.0, "regime_paging_on": False,
        "regime_isolation_strict": False, "regime_queue_p95_ms": 1.0,
    }  # fmt: skip
    return pl.DataFrame([base | {"step": number} | row for number, row in enumerate(rows)], infer_schema_length=None)


def test_transitions_name_what_pushed() -> None:
    found = transitions(
        states(
            {},
            {"regime": "memory_pressured", "regime_free_mb": 512.0, "regime_rank": 3},
            {"regime": "memory_pressured", "regime_free_mb": 500.0, "regime_rank": 3},
            {"regime": "paging", "regime_free_mb": 500.0, "regime_paging_on": True, "regime_rank": 3},
            {"regime": "queue_degraded", "regime_queue_p95_ms": 99.0, "regime_rank": 3},
            {"regime": "unknown", "regime_queue_p95_ms": None, "regime_rank": 3},
        )
    )
    assert [(one.step, one.before, one.after, one.why) for one in found] == [
        (1, "normal", "memory_pressured", "free memory 8000 → 512 MiB, worst rank 0 → 3"),
        (3, "memory_pressured", "paging", "paging off → on"),
        (4, "paging", "queue_degraded", "paging on → off, queue p95 1 → 99 ms"),
        (5, "queue_degraded", "unknown", "queue p95 99 → not on record ms"),
    ]
    assert transitions(states({"regime": "paging"}, {"regime": "paging"})) == []


def test_regimes_reach_the_steps_of_a_request(tmp_path: Path) -> None:
    story = Story().engine().request("a", A)
    for record in [one for one in story.records if one["kind"] == "batch" and one["engine_step"] >= 2]:
        story.add(**(record | {"rank": 1, "headroom_mb": 100.0, "seq": len(story.records)}))
    with story.tell(tmp_path) as store:
        steps = gather(store, store.ask("request", req_id="a").to_dicts()[0], Thresholds()).steps
    assert steps["regime"].to_list() == ["normal", "normal", "memory_pressured", "memory_pressured"]
    assert steps["regime_rank"].to_list() == [0, 0, 1, 1]
    assert [(one.step, one.why) for one in transitions(steps)] == [(2, "free memory 4096 → 100 MiB, worst rank 0 → 1")]
    assert set(steps["regime_extended"]) == {"unknown"}, "nobody recorded the pins"


def test_a_flat_step_speaks_for_its_launch(tmp_path: Path) -> None:
    """The article's own form: every field of the batch on the step, no batch record, no engine step."""
    story = Story().engine().request("a", A)
    story.records = [one for one in story.records if one["kind"] != "batch"]
    for record in story.records:
        if record["kind"] == "step":
            record |= {"engine_step": None, "vram_free_mb": 812.0, "paging_on": record["step"] > 1}
    with story.tell(tmp_path) as store:
        steps = gather(store, store.ask("request", req_id="a").to_dicts()[0], Thresholds()).steps
    assert steps["regime"].to_list() == ["memory_pressured"] * 2 + ["paging"] * 2


def test_all_borders_can_be_set_from_the_command_line() -> None:
    assert limits(1.0, 2.0, 0.5) == Thresholds(free_mb=1.0, queue_p95_ms=2.0, evaporation_ratio=0.5)
    for name in ("incidents", "explain", "export"):
        shown = CliRunner().invoke(app, [name, "--help"]).output
        assert all(option in shown for option in ("--free-mb", "--queue-p95-ms", "--evaporation-ratio"))
