"""State collapse on made-up runs: rare where nothing changed, or the work alone did; found where it is planted."""

from __future__ import annotations

import math
import random

import polars as pl
import pytest

from forensics.detectors.state_collapse import collapse
from forensics.freedom import TOGETHER, freedoms
from tests.test_change_point import SEEDS, most, remembering

LAUNCHES, CHANGE = 300, 200
POOL = 2000


def run(seed: int, *, work: bool = False, worse: tuple[str, ...] = ()) -> pl.DataFrame:
    """Return launches of a server whose step time has a memory. work: three times the requests from CHANGE on.

    worse: 'step_time' x 1.5, 'memory' - 25 % of the pool, 'waiting' a third of those present, 'tactic' in half of the
    launches, from CHANGE on.
    """
    chance = random.Random(seed)
    noise = remembering(LAUNCHES, 0.5, chance)
    rows = []
    for place in range(LAUNCHES):
        later = place >= CHANGE
        present = chance.randint(3, 6) * (3 if work and later else 1)
        size, queue = min(present, 12), max(present - 12, 0)
        if "waiting" in worse and later:
            queue += max(1, size // 2)
        context = 100 * size + chance.randint(0, 40)
        slower = 1.5 if "step_time" in worse and later else 1.0
        free = POOL - context // 16 - chance.randint(0, 20) - (POOL // 4 if "memory" in worse and later else 0)
        other = "tactic" in worse and later and chance.random() < 0.5
        rows.append({
            "engine_step": place, "batch_size": size, "batch_tokens": size, "queue_depth": queue,
            "step_ms": slower * (5 + size + context / 500) * math.exp(0.05 * noise[place]),
            "kv_blocks_free": free, "kv_blocks_total": POOL, "context_tokens": context, "regime_free_mb": None,
            "kv_pool_total_mb": None, "shape": f"tokens={size}", "tactic": f"algo {size + 100 * other}",
        })  # fmt: skip
    return pl.DataFrame(rows)


@pytest.mark.parametrize("work", [False, True])
def test_no_change_and_a_change_of_work_alone_are_no_collapse(work: bool) -> None:
    alarms = sum(collapse(run(seed, work=work)) is not None for seed in range(SEEDS))
    assert alarms <= most(0.01, SEEDS)


@pytest.mark.parametrize("two", [("step_time", "waiting"), ("memory", "waiting"), ("step_time", "tactic")])
def test_two_that_get_worse_are_no_collapse(two: tuple[str, ...]) -> None:
    assert sum(collapse(run(seed, worse=two)) is not None for seed in range(60)) <= most(0.01, 60)


@pytest.mark.parametrize(
    "worse", [("step_time", "memory", "waiting"), ("step_time", "waiting", "tactic"), ("memory", "waiting", "tactic")]
)
def test_a_planted_collapse_is_found(worse: tuple[str, ...]) -> None:
    for one in (collapse(run(seed, worse=worse)) for seed in range(10)):
        assert one is not None
        assert abs(one.place - CHANGE) <= 5
        assert len(one.told) == len(worse) >= TOGETHER


def test_a_collapse_amid_work_that_never_recurs_is_missed() -> None:
    """What is compared within classes of work has nothing to be compared with: said in docs/causality.md."""
    found = [collapse(run(seed, work=True, worse=("step_time", "memory", "waiting"))) for seed in range(10)]
    assert sum(one is None for one in found) >= 5


def test_a_recovery_is_no_collapse() -> None:
    backwards = [run(seed, worse=("step_time", "memory", "waiting", "tactic")).reverse() for seed in range(10)]
    assert all(collapse(frame) is None for frame in backwards)


def test_a_run_that_states_too_little_has_no_known_freedom() -> None:
    blank = run(1).with_columns(pl.lit(None).alias(name) for name in ("step_ms", "queue_depth", "kv_blocks_free"))
    assert [one.name for one in freedoms(blank) if one.known] == ["tactic"]
    assert collapse(blank) is None
