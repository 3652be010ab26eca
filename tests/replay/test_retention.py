"""What is kept and what is left out: whole engine steps, counted, and never mistaken for a loss."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from replay import retention
from replay.policy import Policy
from replay.retention import Retention
from replay.triggers import margin_ulps

SECOND = 1_000_000_000
FULL = Policy(ring_s=2.0, triggers=("thin_margin", "preemption", "regime", "signal"))


class Run:
    """Records on a clock of their own, sifted as a recorder would: ten engine steps a second, three rows each."""

    def __init__(self, policy):
        self.thinned = Counter()
        self.retention = Retention(policy, json.dumps, self.thinned)
        self.lines = []
        self.now = 0

    def record(self, kind, **fields):
        self.now += 1
        record = {"kind": kind, "ts": self.now / 1e9, **fields, "mono_ns": self.now}
        self.lines += map(json.loads, self.retention.sift(record))

    def steps(self, first, end, thin=None, **batch):
        for step in range(first, end):
            self.now = step * SECOND // 10
            self.record("batch", engine_step=step, batch_size=3, headroom_mb=5000.0, **batch)
            for row in range(3):
                margin = 0.0 if (step, row) == thin else 9.0
                top = {"top_logits": [16.0, 16.0 - margin], "margin": margin, "logit_dtype": "bfloat16"}
                self.record("step", engine_step=step, req_id=f"r{row}", **top)

    def end(self):
        self.lines += map(json.loads, self.retention.end(self.now, 0.0))

    def kept(self):
        """Return the engine steps on disk; fails where one is not whole."""
        rows = Counter(line["engine_step"] for line in self.lines if line["kind"] in ("batch", "step"))
        assert set(rows.values()) <= {4}, f"torn engine steps: {rows}"
        return sorted(rows)

    def events(self, what):
        return [line for line in self.lines if line.get("what") == what]


def test_without_a_policy_all_is_kept_in_order():
    run = Run(Policy())
    run.steps(0, 5)
    assert run.kept() == list(range(5))
    assert not run.thinned


def test_one_step_in_so_many_whole_and_the_rest_is_counted():
    run = Run(Policy(sample=4))
    run.record("engine", engine="toy")
    run.record("request", req_id="r0")
    run.record("device", rank=0)
    run.steps(0, 10)
    run.record("event", what="abort", engine_step=9)
    assert run.kept() == [0, 4, 8]
    assert run.thinned == {"batch": 7, "step": 21}
    assert [line["kind"] for line in run.lines if line["kind"] not in ("batch", "step")] == [
        "engine", "request", "device", "event"
    ]  # fmt: skip


def test_a_ring_writes_no_step_until_a_trigger():
    run = Run(FULL)
    run.record("engine", engine="toy")
    run.record("request", req_id="r0")
    run.steps(0, 100)
    run.record("event", what="abort")
    assert [line["kind"] for line in run.lines] == ["engine", "request", "event"]
    held = run.retention.held
    assert sum(run.thinned.values()) + held == 400
    assert held == 21 * 4, "two seconds of ten steps, and the one at the border"
    run.end()
    assert run.thinned == {"batch": 100, "step": 300}
    assert run.retention.held == 0


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_trigger_dumps_the_ring_and_the_time_after_it_in_whole_steps(row):
    run = Run(FULL)
    run.steps(0, 100, thin=(50, row))
    run.end()
    assert run.kept() == list(range(30, 71))
    (trigger,), (end,) = run.events("trigger"), run.events("trigger_window_end")
    assert trigger["req_id"] == f"r{row}"
    assert trigger["engine_step"] == 50
    detail = trigger["detail"]
    assert (detail["trigger"], detail["margin"], detail["from_engine_step"]) == ("thin_margin", 0.0, 30)
    assert detail["seconds_back"] == pytest.approx(2.0, abs=0.001)
    assert end["detail"] == {"triggers": {"thin_margin": 1}, "records": 41 * 4}
    assert run.thinned == {"batch": 59, "step": 177}
    first = run.lines.index(trigger)
    assert all(line["kind"] == "event" for line in run.lines[: first + 1]), "why comes before what"


def test_triggers_in_an_open_window_extend_it_and_are_counted():
    run = Run(FULL)
    run.steps(0, 50, thin=(49, 0))
    run.steps(50, 61, thin=(60, 1))
    run.record("event", what="preemption", req_id="r2", engine_step=61)
    run.steps(61, 120)
    run.end()
    assert run.kept() == list(range(29, 81))
    assert [one["detail"]["trigger"] for one in run.events("trigger")] == ["thin_margin", "preemption"]
    (end,) = run.events("trigger_window_end")
    assert end["detail"]["triggers"] == {"thin_margin": 2, "preemption": 1}


def test_two_incidents_are_two_windows():
    run = Run(FULL)
    run.steps(0, 100, thin=(20, 0))
    run.steps(100, 200, thin=(150, 0))
    run.end()
    assert run.kept() == [*range(41), *range(130, 171)]
    assert len(run.events("trigger")) == len(run.events("trigger_window_end")) == 2


@pytest.mark.parametrize(
    ("change", "facts"),
    [({"paging_on": True}, {"paging_on": True}), ({"headroom_mb": 1000.0}, {"free_mb": 1000.0, "threshold_mb": 1024.0}),
     ({"vram_free_mb": 7.0}, {"free_mb": 7.0, "threshold_mb": 1024.0}),
     ({"headroom_mb": None, "vram_free_mb": 5.0}, {"free_mb": 5.0, "threshold_mb": 1024.0})],
)  # fmt: skip
def test_a_regime_pulls_once_when_it_is_entered(change, facts):
    run = Run(FULL)
    run.steps(0, 30, paging_on=False)
    pressed = {"headroom_mb": 5000.0, "paging_on": False} | change
    for step in range(30, 130):
        run.now = step * SECOND // 10
        run.record("batch", engine_step=step, **{name: value for name, value in pressed.items() if value is not None})
    (trigger,) = run.events("trigger")
    assert trigger["detail"] | facts == trigger["detail"]
    assert trigger["detail"]["trigger"] == "regime"
    (end,) = run.events("trigger_window_end")
    assert end["detail"]["triggers"] == {"regime": 1}


def test_only_the_triggers_that_were_asked_for_are_pulled():
    run = Run(Policy(ring_s=2.0, triggers=("preemption",)))
    run.steps(0, 30, thin=(20, 0), paging_on=True)
    run.record("event", what="signal")
    assert not run.events("trigger")
    run.record("step", engine_step=30, req_id="r0", preempted=True)
    assert len(run.events("trigger")) == 1


def test_a_sampled_base_and_a_ring_go_together():
    run = Run(Policy(ring_s=2.0, triggers=("thin_margin",), sample=10))
    run.steps(0, 100, thin=(50, 1))
    run.end()
    assert run.kept() == sorted({*range(0, 100, 10), *range(30, 71)})


def test_records_of_other_threads_do_not_tear_a_step_out_of_the_ring():
    run = Run(Policy(ring_s=2.0, triggers=("signal",)))
    for step in range(60):
        run.now = step * SECOND // 10
        run.record("batch", engine_step=step)
        run.record("device", rank=0)
        run.now += SECOND // 20
        for row in range(3):
            run.record("step", engine_step=step, req_id=f"r{row}")
    run.now -= SECOND // 40  # two seconds ago lies between the batch record of step 39 and its rows
    run.record("event", what="signal")
    assert run.kept() == list(range(39, 60))


def test_a_ring_that_is_full_lets_whole_steps_go_and_says_how_far_back_it_got(monkeypatch):
    monkeypatch.setattr(retention, "RING_BYTES", 10_000)
    run = Run(FULL)
    run.steps(0, 60, thin=(59, 2))
    kept = run.kept()
    assert 5 < len(kept) < 21
    (trigger,) = run.events("trigger")
    assert trigger["detail"]["seconds_back"] == pytest.approx((59 - kept[0]) / 10, abs=0.001)


@pytest.mark.parametrize(
    ("step", "ulps"),
    [
        ({"margin": 0.125, "top_logits": [25.75, 25.625], "logit_dtype": "bfloat16"}, 1.0),
        ({"margin": 0.5, "top_logits": [-1.0, -1.5], "logit_dtype": "bfloat16"}, 64.0),
        ({"margin": 2.0**-19, "top_logits": [16.0, 16.0 - 2.0**-19], "logit_dtype": "float32"}, 1.0),
        ({"margin": 0.0, "logit_dtype": "unheard of"}, 0.0),
        ({"margin": 0.5, "top_logits": [1.0, 0.5], "logit_dtype": "unheard of"}, None),
        ({"margin": 0.5, "top_logits": [0.0, -0.5], "logit_dtype": "bfloat16"}, None),
        ({}, None),
    ],
)
def test_margins_in_ulps(step, ulps):
    assert margin_ulps(step) == ulps
