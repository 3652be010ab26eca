"""The parts of a proof that are plain functions: delta debugging, shares of an effect, exact tests, rounding."""

from itertools import combinations

import pytest
from replay_worlds import make_case

from replay.effects import interaction, shapley
from replay.exchange import exchange
from replay.races import excluded_rate, fisher
from replay.rounding import rounding_or_bug
from replay.search import reduce_set
from replay.trial import Trace
from replay.workbench import MAX_TRIALS, Bench

NAMES = tuple("abcdefgh")


def counted(test):
    """Return a memoised test and the list of sets that it really ran."""
    ran = []

    def answer(names):
        if names not in ran:
            ran.append(names)
        return test(set(names))

    return answer, ran


@pytest.mark.parametrize("size", [1, 2, 3])
def test_delta_debugging_finds_every_needed_set(size):
    for needed in combinations(NAMES, size):
        test, ran = counted(lambda names, needed=needed: "proven" if names >= set(needed) else "failed")
        assert reduce_set(NAMES, test) == needed
        assert all(tuple(n for n in needed if n != one) in ran for one in needed if size > 1), "removals are verified"


def test_delta_debugging_keeps_what_it_cannot_tell():
    """Without g nothing can be tried: it stays, and is not called needed."""
    result = reduce_set(NAMES, lambda names: "open" if "g" not in names else "proven" if "b" in names else "failed")
    assert result == ("b", "g")


def test_delta_debugging_where_two_ways_lead_there_takes_one_that_cannot_be_made_smaller():
    def test(names):
        return "proven" if {"a", "b"} <= set(names) or {"e", "h"} <= set(names) else "failed"

    result = reduce_set(NAMES, test)
    assert test(result) == "proven"
    assert all(test(tuple(n for n in result if n != one)) == "failed" for one in result)


def test_shares_of_an_additive_effect_are_the_effects_and_nothing_interacts():
    effect = {"a": 2.0, "b": 1.0, "c": 0.0}
    cells = {frozenset(s): sum(effect[n] for n in s) for size in range(4) for s in combinations("abc", size)}
    assert {name: value for name, (value, _) in shapley(cells, "abc").items()} == pytest.approx(effect)
    assert interaction(cells, "abc", ("a", "b")) == pytest.approx(0)


def test_two_factors_that_act_only_together_share_and_interact():
    cells = {frozenset(s): float({"a", "b"} <= set(s)) for size in range(4) for s in combinations("abc", size)}
    shares = shapley(cells, "abc")
    assert [shares[name][0] for name in "abc"] == pytest.approx([0.5, 0.5, 0.0])
    assert interaction(cells, "abc", ("a", "b")) == pytest.approx(1)
    assert interaction(cells, "abc", ("a", "c")) == pytest.approx(0)


def test_orders_with_a_step_that_could_not_run_are_left_out():
    cells = {frozenset(s): float("a" in s) for size in range(3) for s in combinations("ab", size)}
    del cells[frozenset("a")]
    assert shapley(cells, "ab") == {"a": (1.0, 1), "b": (0.0, 1)}
    assert interaction(cells, "ab", ("a", "b")) is None
    del cells[frozenset("b")]
    assert shapley(cells, "ab") == {}


def test_what_repeats_exclude_is_the_rule_of_three():
    assert excluded_rate(20) == pytest.approx(0.1391, abs=1e-4)
    assert excluded_rate(300) == pytest.approx(0.00994, abs=1e-4)


@pytest.mark.parametrize(("runs", "p"), [(3, 0.1), (4, 0.0286), (5, 0.0079), (8, 0.00016)])
def test_fisher_on_all_against_none(runs, p):
    assert fisher(runs, runs, 0, runs) == pytest.approx(p, abs=1e-4)
    assert fisher(0, runs, 0, runs) == 1.0


def test_fisher_is_symmetric_and_sums_what_is_as_rare():
    assert fisher(4, 5, 1, 5) == fisher(1, 5, 4, 5) == pytest.approx(0.2063, abs=1e-4)


def bench_with(distance, *, agree, dtype="bfloat16"):
    """Return a bench whose arms chose 9 and 8, `distance` logits apart, and whose fp32 arms agree or not."""

    def run(_case, treatment):
        fp32 = treatment.plan.get("dtype.weights") == "float32"
        first = treatment.plan["gemm.k_split"] == "4" or (fp32 and agree)
        pair = (9, 8) if first else (8, 9)
        return Trace(treatment.plan, (7, pair[0]), ("p", str(first)), ((7,), pair), ((1.0,), (16.0, 16.0 - distance)),
                     observed=dict(treatment.plan), details={"logit_dtype": dtype})  # fmt: skip

    bench = Bench(make_case(), run)
    incident, reference = bench.plans()
    assert bench.settle(bench.trial("i", incident), bench.trial("r", reference))
    return bench


@pytest.mark.parametrize(
    ("distance", "agree", "answer", "ulps"),
    [
        (0.125, True, "rounding", 1),
        (0.5, True, "rounding", 4),
        (0.625, True, "not_rounding", 5),
        (0.125, False, "not_rounding", 1),
        (4.0, False, "not_rounding", 32),
        (0.0, True, "rounding", 0),
    ],
)
def test_rounding_needs_fp32_and_a_near_tie(distance, agree, answer, ulps):
    found = rounding_or_bug(bench_with(distance, agree=agree))
    assert (found.answer, found.ulps) == (answer, ulps)


def test_a_margin_that_is_not_known_leaves_it_open():
    assert rounding_or_bug(bench_with(0.125, agree=True, dtype="float8_e4m3fn")).answer == "open"


def test_restoring_a_set_is_inducing_the_rest_so_plans_are_run_once():
    bench = bench_with(0.125, agree=True)
    for names in (("gemm.k_split",), ("cpu.threads",)):
        bench.swap(names)
    assert bench.executed == 4
    assert len(bench.filed()) == 6
    assert {one.execution for one in bench.filed()} == {1, 2, 3, 4}


def test_beyond_the_budget_nothing_runs():
    bench = bench_with(0.125, agree=True)
    for number in range(2 * MAX_TRIALS):
        bench.trial("more", {"gemm.k_split": "4", "cpu.threads": str(number + 10)})
    assert bench.executed == MAX_TRIALS
    assert "budget of 64 trials" in bench.trial("more", {"gemm.k_split": "99"}).failed


def test_the_position_goes_with_the_rows():
    big, small = {"batch.rows": "8", "batch.row": "3"}, {"batch.rows": "2", "batch.row": "1"}
    assert exchange(big, small, ["batch.rows"]) == small
    assert exchange(small, big, ["batch.rows"]) == big
    assert exchange(big, {"batch.rows": "2"}, ["batch.rows"]) == {"batch.rows": "2", "batch.row": "1"}
    packed = {"batch.schedule": "incident"}
    assert exchange(big, packed, ["batch.rows", "batch.schedule"]) == packed, "no rows, no place among them"
