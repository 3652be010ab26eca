"""The launches of a schedule: what a trial runs of them, and whose they are by what reached the model."""

from dataclasses import replace

import pytest
from replay_worlds import make_case

from replay.case import Arm
from replay.engines.transformers_schedule import OWN, launches, packed
from replay.factors import Evidence, Packed, Setup, Unpinnable, factor

PROMPT = tuple(range(10, 16))
LONG_BEFORE = ("old", 1, 40)
SCHEDULE = (
    (3, (LONG_BEFORE, ("i", 4, 0))),
    (4, (("old", 1, 41), ("i", 2, 4), ("new", 5, 0))),
    (5, (("old", 1, 42), ("i", 1, 6), ("new", 3, 5))),
    (6, (("i", 1, 7), ("new", 1, 8))),
    (7, (("i", 1, 8), ("new", 1, 9))),
)
CASE = make_case(token_ids=PROMPT, incident=Arm("run", "i", {"batch.schedule": "incident"}, output_token_ids=(1, 2),
                                                schedule=SCHEDULE))  # fmt: skip


def script(case=CASE, **changes):
    """Return the launches as (request, tokens, computed before, whether a token is chosen)."""
    setup = replace(Setup(load=None, model=None, schedule="incident"), **changes)
    return [tuple((r.req_id, r.tokens, r.computed, r.chooses) for r in rows) for rows in launches(case, setup)]


def own(found):
    return [row[1:] for rows in found for row in rows if row[0] == OWN]


def others(found):
    return [tuple(row for row in rows if row[0] != OWN) for rows in found]


def test_the_launches_are_the_recorded_ones_up_to_the_flip():
    assert script() == [
        (("old", 1, 40, True), (OWN, 4, 0, False)),
        (("old", 1, 41, True), (OWN, 2, 4, True), ("new", 5, 0, False)),
        (("old", 1, 42, True), (OWN, 1, 6, True), ("new", 3, 5, True)),
    ]


def test_alone_is_the_request_by_itself():
    assert script(schedule="alone") == [((OWN, 6, 0, True),), ((OWN, 1, 6, True),)]
    assert own(script(schedule="alone", chunks=(4, 2))) == [(4, 0, False), (2, 4, True), (1, 6, True)]
    assert own(script(schedule="alone", cached_prefix=5)) == [(1, 5, True), (1, 6, True)]


def test_a_prompt_in_one_piece_runs_where_it_ended_and_the_neighbours_stay():
    found = script(chunks=(6,))
    assert [own([rows]) for rows in found] == [[], [(6, 0, True)], [(1, 6, True)]]
    assert others(found) == others(script())


def test_a_cached_prefix_shortens_the_first_piece():
    assert own(script(cached_prefix=3)) == [(1, 3, False), (2, 4, True), (1, 6, True)]


def test_pieces_of_a_prompt_that_was_begun_again_are_those_of_the_last_time():
    schedule = ((3, (("i", 4, 0),)), (4, (("i", 3, 0),)), (5, (("i", 3, 3),)), (6, (("i", 1, 6),)))
    case = replace(CASE, incident=replace(CASE.incident, schedule=schedule))
    assert own(script(case)) == [(3, 0, False), (3, 3, True), (1, 6, True)]


def test_a_request_put_out_while_it_decodes_is_computed_again_as_it_was():
    schedule = ((3, (("i", 6, 0),)), (4, (("i", 5, 0),)), (5, (("i", 2, 5),)), (6, (("i", 1, 7),)))
    case = replace(CASE, incident=replace(CASE.incident, schedule=schedule))
    assert own(script(case)) == [(6, 0, True), (5, 0, False), (2, 5, True)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schedule": "reference"}, "holds no launches of that arm"),
        ({"chunks": (2, 2, 2)}, "3 pieces, and the prompt had 2 launches"),
        ({"chunks": (4, 3)}, "do not make a prompt of 6"),
        ({"cached_prefix": 4}, "ends before it"),
        ({"schedule": "alone", "chunks": (4,)}, "do not make a prompt of 6"),
    ],
)
def test_what_cannot_be_launched_is_refused(changes, says):
    with pytest.raises(Unpinnable, match=says):
        script(**changes)


def test_launches_of_another_prompt_are_refused():
    with pytest.raises(Unpinnable, match="do not fit a prompt of 3"):
        script(make_case(incident=CASE.incident))


def test_a_row_without_tokens_is_refused():
    empty = ((3, (("x", 0, 4), ("i", 6, 0))),)
    with pytest.raises(Unpinnable, match="has no tokens"):
        script(replace(CASE, incident=replace(CASE.incident, schedule=empty)))


def observed(seen, asked="incident", **schedules):
    return factor("batch.schedule").observe(Evidence(packed=seen, schedules=schedules, schedule=asked))


def test_whose_launches_they_were_is_read_from_lengths_and_place():
    seen = packed(CASE.incident)
    longer = [*seen[:2], Packed(((1, 43), *seen[2].rows[1:]), 1)]
    moved = [Packed(seen[0].rows[::-1], 0), *seen[1:]]
    assert observed(seen[:3], incident=seen, reference=longer) == "incident"
    assert observed(longer, incident=seen, reference=longer) == "reference"
    assert observed(moved, incident=seen) is None
    assert observed(seen, incident=seen[:3]) is None, "more launches than on record"
    assert observed(seen[:2], "reference", incident=seen, reference=longer) == "reference", "both fit so far"
    assert observed(seen, "reference", incident=seen, reference=longer) == "incident", "what ran, not what was asked"
    assert observed(seen, "alone", incident=seen) == "incident"
    assert observed([Packed(((4, 0),), 0)], incident=seen) == "alone"
    assert observed([Packed(((6, 0),), None), *seen[1:]], incident=seen) is None, "a row that nobody recorded"


def test_a_piece_of_the_prompt_more_or_less_is_no_other_schedule():
    seen = packed(CASE.incident)
    merged = [Packed(seen[0].others(), None), Packed(((1, 41), (6, 0), (5, 0)), 1)]
    assert observed(merged, incident=seen) == "incident"
    evidence = Evidence(packed=merged, target=PROMPT)
    assert factor("prefill.chunks").observe(evidence) == "6"
    assert factor("prefill.chunks").observe(Evidence(packed=seen, target=PROMPT)) == "4,2"
