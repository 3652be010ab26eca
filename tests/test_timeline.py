"""The article's two regime functions, verbatim, and spans."""

from __future__ import annotations

from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forensics.timeline import Span, queue_p95, regime, regime_extended, spans, worst_rank


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


def test_the_worst_rank_speaks_for_the_group() -> None:
    frame = pl.DataFrame(
        {"engine_step": [0, 0, 1, 1], "rank": [0, 1, 0, 1], "regime": ["normal", "paging", "normal", "normal"]}
    )
    assert worst_rank(frame).select("engine_step", "rank", "regime").rows() == [(0, 1, "paging"), (1, 0, "normal")]
