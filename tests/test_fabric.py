"""The arithmetic of collectives: lines through sizes, medians of peers, segments, waiting taken from transfer."""

from __future__ import annotations

from statistics import median

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forensics.fabric import bandwidth, calls, fits, measured, step_times, theil_sen, with_peers
from forensics.segments import autocorrelation, raised
from forensics.stragglers import Straggler, counterfactual

COLUMNS = {
    "engine_step": pl.Int64, "rank": pl.Int64, "comm_id": pl.String, "op": pl.String, "seq_no": pl.Int64,
    "bytes": pl.Int64, "start_ts": pl.Float64, "end_ts": pl.Float64, "comm_ms": pl.Float64, "compute_ms": pl.Float64,
    "retransmits": pl.Int64, "batch_tokens": pl.Int64,
}  # fmt: skip
SIZES = [256, 1024, 4096, 65536, 1 << 20]


def frame(computes: list[list[float]], wire: float = 0.5, size: int = 1024) -> pl.DataFrame:
    """One collective a step; computes: per step, per rank [ms]. Who is not last waits."""
    rows = [
        {"engine_step": step, "seq_no": step, "rank": rank, "comm_id": "c", "op": "all_reduce", "bytes": size,
         "compute_ms": own, "comm_ms": wire + max(ranks) - own}
        for step, ranks in enumerate(computes) for rank, own in enumerate(ranks)
    ]  # fmt: skip
    return measured(pl.DataFrame(rows, schema=COLUMNS))


@given(st.floats(0, 10), st.floats(1e-7, 1e-2))
def test_a_line_is_found_again(alpha: float, slope: float) -> None:
    found = theil_sen((size, alpha + slope * size) for size in SIZES)
    assert found is not None
    assert found == pytest.approx((alpha, slope), rel=1e-6, abs=1e-6)


@given(st.integers(0, 4), st.floats(0.01, 1000))
def test_one_size_that_is_off_moves_the_line_little(which: int, off: float) -> None:
    points = [(size, 1.0 + 1e-5 * size) for size in SIZES]
    points[which] = (points[which][0], off)
    found = theil_sen(points)
    assert found is not None
    slopes = sorted((v - y) / (u - x) for x, y in points for u, v in points if u > x)
    assert slopes[2] <= found[1] <= slopes[-3], "six of the ten slopes are true: the median is among them or beside"


def test_too_few_or_too_similar_sizes_have_no_line() -> None:
    assert theil_sen([(1, 1.0), (1000, 2.0)]) is None
    assert theil_sen([(1000, 1.0), (1001, 2.0), (1002, 3.0)]) is None
    assert fits(calls(frame([[1.0, 1.0]] * 9))) == ()


def test_more_bytes_that_take_no_longer_have_no_bandwidth() -> None:
    some = pl.concat([calls(frame([[1.0, 1.0]] * 3, size=size)) for size in SIZES])
    (fit,) = fits(some)
    assert fit.bytes_per_s is None
    assert fit.alpha_ms == pytest.approx(0.5)


def test_bus_bandwidth_of_an_all_reduce() -> None:
    """1 MiB over 4 ranks in 1 ms: each byte crosses a link 2 * 3 / 4 times."""
    assert bandwidth(calls(frame([[1.0] * 4], wire=1.0, size=1 << 20))) == {
        "all_reduce": pytest.approx(1.5 * (1 << 20) / 1e6)
    }


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=9))
def test_the_median_of_the_peers_leaves_the_rank_out(computes: list[float]) -> None:
    found = with_peers(frame([computes])).sort("rank")["peers_compute_ms"].to_list()
    assert found == pytest.approx([median(computes[:at] + computes[at + 1 :]) for at in range(len(computes))])


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(0.1, 50), min_size=3, max_size=3), min_size=1, max_size=5))
def test_a_step_is_compute_and_waiting_and_transfer(computes: list[list[float]]) -> None:
    records = frame(computes)
    one = calls(records)
    assert one["transfer_ms"].to_list() == pytest.approx([0.5] * len(computes), rel=1e-6)
    assert one["skew_ms"].to_list() == pytest.approx([max(ranks) - min(ranks) for ranks in computes], abs=1e-9)
    total = step_times(one).select(pl.sum_horizontal("compute_ms", "transfer_ms", "sync_ms")).to_series().to_list()
    assert total == pytest.approx([max(ranks) + 0.5 for ranks in computes])


def test_a_transfer_is_unknown_where_a_rank_is_missing() -> None:
    records = frame([[1.0, 1.0, 5.0]] * 2)
    some = calls(records.filter(~((pl.col("rank") == 2) & (pl.col("engine_step") == 1))))
    assert some.sort("engine_step")["transfer_ms"].to_list() == [0.5, None]


@given(st.integers(0, 30), st.integers(5, 30), st.integers(0, 30), st.floats(1.2, 50))
def test_a_raised_segment_is_found_where_it_is(before: int, length: int, after: int, times: float) -> None:
    values = [1.0] * before + [times] * length + [1.0] * after
    (found,) = raised(values, 1.1)
    assert (found.first, found.last) == (before, before + length - 1)
    assert found.median == pytest.approx(times)


@given(st.lists(st.floats(0.92, 1.08), max_size=80))
def test_what_stays_below_the_level_is_no_segment(values: list[float]) -> None:
    assert raised(values, 1.1) == []


def test_a_large_shift_is_not_taken_together_with_a_small_one_beside_it() -> None:
    assert [one[:2] for one in raised([1.2] * 20 + [50.0] * 6 + [1.0] * 9, 1.1)] == [(0, 19), (20, 25)]


def test_four_values_are_an_outlier() -> None:
    assert raised([1.0] * 20 + [9.0] * 4 + [1.0] * 20, 1.1) == []


def test_autocorrelation() -> None:
    assert autocorrelation([1.0, 2.0] * 20) == 0.0
    assert autocorrelation([1.0] * 20 + [2.0] * 20) > 0.9


def test_removal_and_addition_of_one_late_rank() -> None:
    records = with_peers(frame([[2.0] * 4] * 10 + [[2.0, 2.0, 6.0, 2.0]] * 10))
    asked = counterfactual(records, [Straggler(2, 3.0, 1.0, 99.0, 10, 19)])
    assert (asked.removal, asked.addition) == (pytest.approx(1.0), pytest.approx(1.0))
    assert asked.lost == pytest.approx(6.5 / 2.5 - 1)
    assert asked.explains


def test_a_rank_that_is_slow_and_waited_for_by_nobody_explains_nothing() -> None:
    records = with_peers(frame([[2.0, 2.0, 2.0, 9.0]] * 10 + [[2.0, 2.0, 6.0, 9.0]] * 10))
    asked = counterfactual(records, [Straggler(2, 3.0, 1.0, 99.0, 10, 19)])
    assert asked.removal is None
    assert not asked.weighs


def test_low_removal_and_high_addition_enlarge_the_set() -> None:
    records = with_peers(frame([[2.0] * 8] * 10 + [[2.0] * 6 + [6.0, 6.0]] * 10))
    asked = counterfactual(records, [Straggler(rank, 3.0, 1.0, 99.0, 10, 19) for rank in (6, 7)])
    assert asked.ranks == (6, 7)
    assert asked.alone == pytest.approx(0.0)
    assert asked.removal == pytest.approx(1.0)
