"""From recorded arms to plans in terms of schedules."""

from types import SimpleNamespace

import polars as pl
import pytest

from forensics.errors import ForensicsError
from forensics.schedules import by_step, check_whole, graph_modes, with_schedules
from replay.case import Arm

PROMPT, FLIP = 6, 1
ALONE = ((0, (("r", 6, 0),)), (1, (("r", 1, 6),)), (2, (("r", 1, 7),)))
SHARED = ((3, (("x", 1, 9), ("i", 6, 0))), (4, (("x", 1, 10), ("i", 1, 6))), (5, (("i", 1, 7),)))
PAGED = {"attention.backend": "paged", "batch.rows": "2", "batch.launch_tokens": "7", "prefill.cached_prefix": "0",
         "graph.mode": "eager", "cpu.threads": "1"}  # fmt: skip
STATIC = {"attention.backend": "flash", "batch.rows": "1", "batch.row": "0", "batch.left_pad": "0",
          "batch.mask_path": "implicit", "cpu.threads": "1"}  # fmt: skip


def arm(name, plan, schedule, **more):
    return Arm(f"run-{name}", name, plan, schedule=schedule, **more)


def plans(incident, reference, flip=FLIP):
    pair = with_schedules(incident, reference, PROMPT, flip)
    assert [one.schedule for one in pair] == [incident.schedule, reference.schedule]
    return [one.plan for one in pair]


def test_a_request_alone_against_one_in_company():
    found = plans(arm("i", PAGED, SHARED), arm("r", STATIC, ALONE))
    assert found == [
        {"attention.backend": "paged", "batch.schedule": "incident", "cpu.threads": "1"},
        {"attention.backend": "flash", "batch.schedule": "alone", "cpu.threads": "1"},
    ]


def test_company_that_came_after_the_flip_is_none():
    late = (*ALONE[:2], (2, (("r", 1, 7), ("x", 5, 0))))
    assert [one["batch.schedule"] for one in plans(arm("r", PAGED, late), arm("r", STATIC, ALONE))] == ["alone"] * 2
    assert plans(arm("r", PAGED, late), arm("r", STATIC, ALONE), flip=2)[0]["batch.schedule"] == "incident"


def test_two_runs_with_the_same_launches_do_not_differ_in_them():
    renamed = tuple((step + 7, tuple((f"{name}'", *lengths) for name, *lengths in rows)) for step, rows in SHARED)
    found = plans(arm("i", PAGED, SHARED), arm("i'", PAGED, renamed))
    assert [one["batch.schedule"] for one in found] == ["incident", "incident"]
    moved = ((3, SHARED[0][1][::-1]), *SHARED[1:])
    assert plans(arm("i", PAGED, SHARED), arm("i", PAGED, moved))[1]["batch.schedule"] == "reference"


def test_chunks_and_a_cached_prefix_become_factors_of_both_arms():
    pieces = ((3, (("x", 1, 9), ("i", 2, 0))), (4, (("i", 3, 0),)), (5, (("i", 3, 3),)), (6, (("i", 1, 6),)))
    incident, reference = plans(arm("i", PAGED, pieces), arm("r", STATIC, ALONE))
    assert (incident["prefill.chunks"], reference["prefill.chunks"]) == ("3,3", "6")
    cached = ((3, (("x", 1, 9), ("i", 2, 4))), (4, (("i", 1, 6),)), (5, (("i", 1, 7),)))
    incident, reference = plans(arm("i", PAGED | {"prefill.cached_prefix": "4"}, cached), arm("r", STATIC, ALONE))
    assert (incident["prefill.cached_prefix"], reference["prefill.cached_prefix"]) == ("4", "0")
    assert "prefill.chunks" not in incident


def test_a_padded_batch_keeps_its_own_plan():
    rows = tuple((step, (*rows, ("y", 1, 5))) for step, rows in ALONE)
    for reference in (arm("r", STATIC | {"batch.left_pad": "3"}, ALONE), arm("r", STATIC | {"batch.rows": "2"}, rows)):
        incident, other = plans(arm("i", PAGED, SHARED), reference)
        assert incident["batch.schedule"] == "incident"
        assert other == reference.plan


def test_a_synthetic_reference_is_the_same_loop_without_company():
    incident, other = plans(arm("i", PAGED, SHARED), arm("alone", PAGED, (), synthetic=True))
    assert other == incident | {"batch.schedule": "alone"}


def test_a_graph_stays_in_the_plan_and_eager_does_not():
    modes = pl.DataFrame({"graph_mode": ["eager", "cuda_graph_full", None]})
    assert graph_modes(SimpleNamespace(steps=modes)) == {"graph.mode": "cuda_graph_full"}
    assert graph_modes(SimpleNamespace(steps=modes[:1])) == {"graph.mode": "eager"}
    assert graph_modes(SimpleNamespace(steps=modes[2:])) == {}
    incident, _ = plans(arm("i", PAGED | {"graph.mode": "cuda_graph_full"}, SHARED), arm("r", STATIC, ALONE))
    assert incident["graph.mode"] == "cuda_graph_full"


def test_a_row_that_is_not_on_record_is_named():
    steps = pl.DataFrame({"engine_step": [3, 4, 5], "batch_size": [2, 3, None]})
    with pytest.raises(ForensicsError, match="of engine step 4 2 of 3 rows") as fault:
        check_whole(SimpleNamespace(name="i", steps=steps), arm("i", PAGED, SHARED))
    assert fault.value.exit_code == 4


@pytest.mark.parametrize(("engine", "said"), [(None, False), ({"config": None}, False),
                                              ({"config": '{"batching": "static"}'}, False),
                                              ({"config": '{"batching": "continuous"}'}, True)])  # fmt: skip
def test_only_continuous_batching_goes_by_steps(engine, said):
    assert by_step(SimpleNamespace(engine=engine)) is said
    assert not by_step(None)
