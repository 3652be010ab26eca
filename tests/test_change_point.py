"""Where a series changes, and when several do: found where planted, declared rate of false alarms where not."""

from __future__ import annotations

import random

import pytest

from forensics.change_point import ALPHA, shift, shifts, together

SEEDS = 200


def remembering(count: int, memory: float, chance: random.Random) -> list[float]:
    """Return a first-order process with deviation 1."""
    value, values = chance.gauss(0, 1), []
    for _ in range(count):
        value = memory * value + (1 - memory**2) ** 0.5 * chance.gauss(0, 1)
        values.append(value)
    return values


def stepping(count: int, at: int, size: float, memory: float, seed: int) -> list[float]:
    values = remembering(count, memory, random.Random(seed))
    return [value + size * (place >= at) for place, value in enumerate(values)]


def most(rate: float, looks: int) -> float:
    """Return the count that so many looks at this rate stay under but in one of a thousand series of looks."""
    return float(rate * looks + 3.1 * (rate * (1 - rate) * looks) ** 0.5 + 1)


@pytest.mark.parametrize(("count", "memory"), [(100, 0.0), (400, 0.0), (100, 0.5), (400, 0.5), (400, 0.8)])
def test_a_series_without_a_change_gives_the_declared_rate(count: int, memory: float) -> None:
    found = [shift(remembering(count, memory, random.Random(seed))) for seed in range(SEEDS)]
    assert sum(one is not None and one.p <= ALPHA for one in found) <= most(ALPHA, SEEDS)


@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_a_change_is_found_where_it_is(memory: float) -> None:
    for seed in range(20):
        found = shift(stepping(300, 200, 2.0, memory, seed))
        assert found is not None
        assert found.p <= ALPHA
        assert abs(found.at - 200) <= 10
        assert found.after - found.before > 1


def test_what_cannot_be_judged_is_not() -> None:
    assert shift([1.0] * 500) is None, "constant"
    assert shift(remembering(25, 0.0, random.Random(1))) is None, "too few"
    assert shift(remembering(100, 0.97, random.Random(1))) is None, "a slow wave: worth a few values"


def test_several_changes_are_told_apart_and_small_ones_left_out() -> None:
    values = [one + (3.0 if 100 <= place < 250 else 0.0) for place, one in enumerate(stepping(400, 400, 0, 0.0, 5))]
    assert [round(one.at, -1) for one in shifts(values, 1.0)] == [100, 250]
    assert not shifts(values, 10.0)


def test_three_of_four_change_together_and_two_do_not() -> None:
    def looks(planted: int, seed: int, apart: int = 0) -> tuple[list[int], float] | None:
        sizes = [3.0] * planted + [0.0] * (4 - planted)
        return together(
            [shift(stepping(300, 150 + apart * n, size, 0.3, 10 * seed + n)) for n, size in enumerate(sizes)], 3
        )

    for seed in range(10):
        found = looks(3, seed)
        assert found is not None
        assert set(found[0]) >= {0, 1, 2}
        assert found[1] <= ALPHA
    two = [looks(2, seed) for seed in range(60)]
    assert sum(one is not None and one[1] <= ALPHA for one in two) <= most(ALPHA, 60)
    assert looks(3, 1, apart=50) is None, "three changes at three points are no common one"
    assert together([None, None, None], 3) is None
