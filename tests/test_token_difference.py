"""How two token sequences differ, against the sequences themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forensics.token_difference import CLOSE_LOOK, TokenDifference, token_difference

TOKENS = st.lists(st.integers(0, 3), max_size=30)


def applied(difference: TokenDifference, target: list[int], reference: list[int]) -> list[int]:
    """Make the target out of the reference by the edits."""
    made: list[int] = []
    here = 0
    for edit in difference.edits:
        made += reference[here : edit.at]
        made += target[len(made) : len(made) + edit.inserted]
        here = edit.at + edit.removed
    return made + reference[here:]


@given(TOKENS, TOKENS)
def test_the_edits_lead_from_the_reference_to_the_target(target: list[int], reference: list[int]) -> None:
    difference = token_difference(target, reference)
    if difference is None:
        assert target == reference
        return
    assert applied(difference, target, reference) == target
    assert target[: difference.prefix] == reference[: difference.prefix]
    assert target[difference.prefix : difference.prefix + 1] != reference[difference.prefix : difference.prefix + 1]
    assert all(edit.removed or edit.inserted for edit in difference.edits)
    assert difference.says()


def test_words() -> None:
    long = list(range(1000))
    cases = {
        "128 tokens removed from the front": long[128:],
        "200 tokens removed from the end": long[:800],
        "3 tokens inserted at the front": [7, 7, 7, *long],
        "1 tokens inserted at the end": [*long, 7],
        "10 tokens removed from position 1 on": [0, *long[11:]],
        "2 tokens at position 5 replaced by 1 others": [*long[:5], 9999, *long[7:]],
        "1 tokens at position 5 replaced by 1 others; 1 tokens removed from position 9 on": [
            *long[:5], 9999, *long[6:9], *long[10:],
        ],
    }  # fmt: skip
    for words, target in cases.items():
        difference = token_difference(target, long)
        assert difference is not None
        assert difference.says() == words


def test_many_places_are_counted() -> None:
    difference = token_difference([token if token % 10 else -1 for token in range(1, 101)], list(range(1, 101)))
    assert difference is not None
    assert difference.says().endswith("; and 6 more places")


def test_a_long_middle_is_one_edit() -> None:
    """Two long sequences with one token in common: matching them token by token could be quadratic."""
    size = CLOSE_LOOK + 1
    difference = token_difference(list(range(size)), [token if token == 600 else -1 for token in range(size)])
    assert difference is not None
    assert difference.edits == ((0, size, size),)
