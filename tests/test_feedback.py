"""The feedback loop over time: turns counted where a recomputation still held KV, none where it did not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from forensics.feedback import loops
from forensics.load import load
from forensics.store import Store
from tests.story import A, B, Story, told

if TYPE_CHECKING:
    from pathlib import Path


def served(
    story: Story,
    lives: dict[str, list[tuple[int, bool]]],
    arrivals: dict[str, int],
    waiting: frozenset[int] = frozenset(),
) -> Story:
    """Add requests that ran in the given engine steps; a step with True computed a lost KV again."""
    for name, steps in lives.items():
        story.add("request", req_id=name, arrival_step=arrivals.get(name, 0), arrival_ts=story.now())
        for number, (engine_step, resumed) in enumerate(steps):
            story.add(
                "step", req_id=name, step=number, engine_step=engine_step, row=0, resumed=resumed,
                num_scheduled_tokens=50 if resumed else 1, num_computed_tokens=0 if resumed else 50,
            )  # fmt: skip
    for engine_step in sorted({step for steps in lives.values() for step, _ in steps}):
        depth = int(engine_step in waiting)
        story.add("batch", engine_step=engine_step, rank=0, batch_size=1, batch_tokens=1, queue_depth=depth)
    return story


def life(*parts: tuple[int, int]) -> list[tuple[int, bool]]:
    """Return steps of parts (first, last); every part after the first begins with a recomputation."""
    return [(step, number > 0 and step == first) for number, (first, last) in enumerate(parts)
            for step in range(first, last + 1)]  # fmt: skip


def found(folder: Path, story: Story) -> list[Any]:
    with story.tell(folder) as store:
        return loops(store, "run-1", "r0")


ROUND = {
    "a": life((0, 9), (12, 19), (32, 40)),  # lost at 10, back at 12; lost again at 20, while b runs; back at 32
    "b": life((0, 14), (18, 29)),  # lost at 15, while a, computed again at 12, still ran; back at 18
}


def test_a_loop_is_counted_turn_by_turn(tmp_path: Path) -> None:
    (loop,) = found(tmp_path, served(Story(), ROUND, {}, waiting=frozenset({10, 11, 16})))
    assert (loop.first_step, loop.last_step, loop.steps) == (10, 32, 23)
    assert (loop.turns, loop.closed, loop.preemptions, loop.requests) == (2, 2, 3, ("a", "b"))
    assert (loop.recomputed_tokens, loop.waiting) == (150, 3)
    assert "for the next 23 steps" in loop.told()


def test_turns_between_which_somebody_arrived_are_not_closed(tmp_path: Path) -> None:
    (loop,) = found(tmp_path, served(Story(), ROUND | {"late": life((17, 19))}, {"late": 17}))
    assert (loop.turns, loop.closed) == (2, 1)


@pytest.mark.parametrize(
    "lives",
    [
        {"a": life((0, 9), (12, 14)), "b": life((0, 19), (22, 29))},  # a had ended when b lost its KV
        {"a": life((0, 9), (12, 19)), "b": life((0, 19), (22, 29))},  # a ended in the step before
        {"a": life((0, 9), (30, 40)), "b": life((0, 14), (18, 29))},  # a was not back when b lost its KV
        {"a": life((0, 9), (12, 40))},  # one preemption
    ],
)
def test_preemptions_that_do_not_lead_on_are_no_loop(tmp_path: Path, lives: dict[str, list[tuple[int, bool]]]) -> None:
    assert found(tmp_path, served(Story(), lives, {})) == []


def test_a_request_that_had_lost_its_kv_again_holds_none(tmp_path: Path) -> None:
    lives = {"a": life((0, 9), (12, 19), (32, 40)), "b": life((0, 24), (28, 30))}  # b loses its KV while a is out
    (loop,) = found(tmp_path, served(Story(), lives, {}))
    assert (loop.turns, loop.requests) == (1, ("a",))


def test_the_recorded_preemptions_are_no_loop(tmp_path: Path) -> None:
    """Five on a real engine, two of them under load: the second had lost its KV before the first was back."""
    from tests.test_help import ROOT

    with Store.open(tmp_path / "s.duckdb", create=True) as store:
        load([ROOT / "fixtures" / "incidents" / "vllm-preemption" / "log"], store, None)
        run = store.ask("run_spans").to_dicts()[0]
        again = store.ask("recomputations", run_id=run["run_id"], replica_id=run["replica_id"])
        assert again.height == 5
        assert loops(store, run["run_id"], run["replica_id"]) == []


def test_explain_tells_the_loop_beside_the_chain(tmp_path: Path) -> None:
    story = Story().engine().request("idle-1", A)
    first = story.engine_step
    story.request("load", B, rows=2, drift=0.25)
    lives = {name: [(step + first - 10, again) for step, again in steps] for name, steps in ROUND.items()}
    for steps in lives.values():
        steps[:] = [(step, again) for step, again in steps if step >= 0]
    explanation = told(tmp_path, served(story, lives, {}), against="idle-1")
    (loop,) = explanation.loops
    assert (loop.own_steps, loop.at_flip) == (3, True), "steps 0 to 2, the flip at 2"
    assert explanation.root_cause == "batch_recomposition", "it has no say in the chain"
    quiet = told(tmp_path / "quiet", Story().engine().request("idle-1", A).request("load", B, rows=2, drift=0.25))
    assert quiet.loops == ()
