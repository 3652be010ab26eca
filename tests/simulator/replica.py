"""The discrete-event loop of one replica: requests arrive, launches follow each other, limits answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.simulator.conditions import Conditions, Disturbance, at
from tests.simulator.device import Work, padded, works
from tests.simulator.fabric import Collective, collectives
from tests.simulator.memory import POOL_BLOCKS, DeviceMemory, device_memory
from tests.simulator.scheduler import Event, Running, Scheduler
from tests.simulator.traffic import Ask, sha

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Row:
    """One request in one launch. launched: when (s); token_index: the output position that the launch chose."""

    ask: Ask
    step: int
    scheduled: int
    computed: int
    cached: int
    queue_ms: float | None
    arrival_step: int
    launched: float
    resumed: bool
    preemptions: int
    token_index: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Launch:
    """One engine step. Times in s since the run began; `arithmetic` decides the bits of every row."""

    number: int
    start: float
    end: float
    rows: tuple[Row, ...]
    prefill: bool
    tokens: int
    padded: int
    now: Conditions
    works: tuple[Work, ...]
    collectives: tuple[Collective, ...]
    memory: DeviceMemory
    free_blocks: int
    queue_depth: int
    events: tuple[Event, ...]
    paging: bool
    preempted: int

    @property
    def arithmetic(self) -> str:
        """Return what decides the bits: prefills go by their cut and what was cached, decodes by their tactic."""
        cut = self.rows[0]
        kind = f"prefill/{cut.scheduled}/{cut.computed}" if self.prefill else f"decode/{self.now.graph}"
        return sha(kind, [one.arithmetic for one in self.works])

    @property
    def shape(self) -> str:
        """Return the shape class as a string."""
        graph = self.now.graph
        return f"tokens={self.tokens},rows={len(self.rows)},padded={self.padded},tp={len(self.works)},graph={graph}"


def simulate(
    asks: Sequence[Ask], disturbances: Sequence[Disturbance], *, ranks: int, seed: str, until: float
) -> list[Launch]:
    """Run one replica to its end or to `until` (s). Equal arguments give equal launches."""
    coming = sorted(asks, key=lambda one: (one.arrival, one.req_id))
    engine, clock, launches = Scheduler(seed), 0.0, []
    pending: list[Event] = []
    forced = False
    while clock < until:
        now = at(disturbances, clock)
        while coming and coming[0].arrival <= clock:
            engine.waiting.append(Running(coming[0], coming[0].arrival, len(launches)))
            coming.pop(0)
        if not (engine.waiting or engine.running or engine.offloaded):
            if not coming:
                break
            clock = coming[0].arrival
            continue
        events = [*pending, *engine.make_room(device_memory(engine.pool, now), now)]
        target = next((one for one in engine.running if one.ask.watched and one.generated > 4), None)
        preempted = 0
        if now.preempt_target and target is not None and not forced and not target.preemptions:
            events.append(engine.preempt(target))
            forced, preempted = True, 1
        depth = len(engine.waiting)
        admitted = engine.admit(device_memory(engine.pool, now), now)
        rows = [admitted] if admitted is not None else engine.rows()
        if not rows:
            pending, clock = events, clock + 0.004
            continue
        for one in rows:
            engine.grow(one, now)
        launch = _execute(rows, len(launches), clock, now, engine, ranks, seed, depth, events, preempted,
                          prefill=admitted is not None)  # fmt: skip
        launches.append(launch)
        clock = launch.end
        _advance(rows, engine)
        pending = [] if launch.prefill else engine.observe(1000 * (launch.end - launch.start))
    return launches


def _execute(
    rows: list[Running], number: int, clock: float, now: Conditions, engine: Scheduler, ranks: int, seed: str,
    depth: int, events: list[Event], preempted: int, *, prefill: bool,
) -> Launch:  # fmt: skip
    tokens = rows[0].length - rows[0].computed if prefill else len(rows)
    size = tokens if prefill else padded(tokens, now.padding)
    memory = device_memory(engine.pool, now)
    work = works(number, tokens, size, sum(one.length for one in rows), prefill=prefill,
                 workspace_mb=memory.workspace_free, now=now, ranks=ranks, seed=seed)  # fmt: skip
    sent = collectives(number, size, [one.compute_ms for one in work], now, seed)
    end = clock + (sent[-1].end if sent else work[0].compute_ms / 1000) + 0.0004
    entries = tuple(_row(one, clock, prefill=prefill) for one in rows)
    paging = any(one.what in ("offload", "restore") for one in events)
    return Launch(number, clock, end, entries, prefill, tokens, size, now, work, sent, memory,
                  POOL_BLOCKS - engine.pool.used, depth, tuple(events), paging, preempted)  # fmt: skip


def _row(one: Running, clock: float, *, prefill: bool) -> Row:
    scheduled = one.length - one.computed if prefill else 1
    wait = 1000 * (clock - one.waiting_since) if one.steps == 0 else None
    return Row(one.ask, one.steps, scheduled, one.computed, one.cached, wait, one.arrival_step, clock,
               one.preempted, one.preemptions, one.generated, tuple(one.blocks))  # fmt: skip


def _advance(rows: list[Running], engine: Scheduler) -> None:
    for one in rows:
        one.computed = one.length
        one.generated += 1
        one.steps += 1
        one.preempted = False
        if one.generated >= one.ask.output_tokens:
            engine.finish(one)
