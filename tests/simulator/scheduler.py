"""Admission, limits that answer to stretched steps, paging and preemption of one replica."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from tests.simulator.memory import BLOCK_TOKENS, DeviceMemory, Pool, blocks_for

if TYPE_CHECKING:
    from tests.simulator.conditions import Conditions
    from tests.simulator.traffic import Ask

MAX_ROWS, LEAST_ROWS, CUT = 32, 4, 0.4
SLO_MS, WINDOW, RECOVER_STEPS, RECOVER_MS = 27.0, 4, 24, 23.0
WATERMARK_BLOCKS = 24  # free blocks that admission leaves to those who run


@dataclass
class Running:
    """One request inside the engine."""

    ask: Ask
    waiting_since: float
    arrival_step: int
    computed: int = 0
    generated: int = 0
    cached: int = 0
    steps: int = 0
    blocks: list[int] = field(default_factory=list)
    preempted: bool = False
    preemptions: int = 0

    @property
    def length(self) -> int:
        """Return prompt plus output so far."""
        return self.ask.tokens + self.generated


@dataclass
class Event:
    """Something that happened before a launch."""

    what: str
    req_id: str | None
    detail: dict[str, object]


@dataclass
class Scheduler:
    """What waits, what runs, and how many rows a launch may have."""

    seed: str
    pool: Pool = field(default_factory=Pool)
    waiting: list[Running] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)
    offloaded: list[Running] = field(default_factory=list)
    cached_prefixes: set[str] = field(default_factory=set)
    max_rows: int = MAX_ROWS
    recent_ms: list[float] = field(default_factory=list)
    calm_steps: int = 0

    def observe(self, step_ms: float) -> list[Event]:
        """Take the time of a decode launch; cut the rows if steps are too long, give them back when they are not."""
        self.recent_ms = [*self.recent_ms[1 - WINDOW :], step_ms]
        mean = sum(self.recent_ms) / len(self.recent_ms)
        before = self.max_rows
        if len(self.recent_ms) == WINDOW and mean > SLO_MS and self.max_rows == MAX_ROWS:
            self.max_rows, self.calm_steps = max(LEAST_ROWS, int(MAX_ROWS * CUT)), 0
        elif self.max_rows < MAX_ROWS:
            self.calm_steps = self.calm_steps + 1 if step_ms < RECOVER_MS else 0
            if self.calm_steps >= RECOVER_STEPS:
                self.max_rows = MAX_ROWS
        if self.max_rows == before:
            return []
        return [Event("batch_limit_change", None, {"changed": {"max_num_seqs": [before, self.max_rows]}})]

    def make_room(self, memory: DeviceMemory, now: Conditions) -> list[Event]:
        """Move the newest rows to the host while the next tokens have no room; bring them back when there is."""
        events: list[Event] = []
        growth = sum(one.length % BLOCK_TOKENS == 0 for one in self.running)
        lack = growth - memory.usable_blocks
        aside = sum(one.ask.watched is False for one in self.offloaded)
        while len(self.running) > 1 and (lack > 0 or aside < now.tiered_rows):
            victim = next((one for one in reversed(self.running) if not one.ask.watched), None)
            if victim is None:
                break
            self.running.remove(victim)
            self.offloaded.append(victim)
            lack -= len(victim.blocks)
            aside += 1
            events.append(Event("offload", victim.ask.req_id, {"blocks": len(victim.blocks)}))
            self._release(victim)
        if events:
            return events
        spare = memory.usable_blocks - growth - WATERMARK_BLOCKS
        keep = now.tiered_rows
        while len(self.offloaded) > keep and blocks_for(self.offloaded[0].length) <= spare:
            back = self.offloaded.pop(0)
            back.blocks = self.pool.take(blocks_for(back.length), now.block_scatter, self._draw(back))
            spare -= len(back.blocks)
            self.running.append(back)
            events.append(Event("restore", back.ask.req_id, {"blocks": len(back.blocks)}))
        return events

    def preempt(self, victim: Running) -> Event:
        """Take a row out; it comes back first and is computed again."""
        self.running.remove(victim)
        detail: dict[str, object] = {"num_computed_tokens": victim.computed, "num_output_tokens": victim.generated}
        self._release(victim)
        victim.computed, victim.cached, victim.preempted = 0, 0, True
        victim.preemptions += 1
        self.waiting.insert(0, victim)
        return Event("preemption", victim.ask.req_id, detail)

    def admit(self, memory: DeviceMemory, now: Conditions) -> Running | None:
        """Return the next request to prefill, with its blocks taken; None if nobody waits or there is no room."""
        if now.admission_paused or not self.waiting or len(self.running) >= self.max_rows:
            return None
        one = self.waiting[0]
        need = blocks_for(one.length + 1)
        if need + WATERMARK_BLOCKS > memory.usable_blocks:
            return None
        self.waiting.pop(0)
        if one.ask.prefix in self.cached_prefixes:
            one.cached = one.computed = one.ask.prefix_tokens
        one.blocks = self.pool.take(need, now.block_scatter, self._draw(one))
        self.running.append(one)
        return one

    def rows(self) -> list[Running]:
        """Return the rows of a decode launch, oldest first, within the limit."""
        return [one for one in self.running if one.computed >= one.ask.tokens][: self.max_rows]

    def grow(self, one: Running, now: Conditions) -> None:
        """Give a row the block that its next token needs, if it does."""
        if blocks_for(one.length + 1) > len(one.blocks) and self.pool.free:
            one.blocks += self.pool.take(1, now.block_scatter, self._draw(one))

    def finish(self, one: Running) -> None:
        """Let a request go; a shared prefix stays."""
        self.running.remove(one)
        if one.ask.prefix is not None:
            self.cached_prefixes.add(one.ask.prefix)
        self._release(one)

    def _release(self, one: Running) -> None:
        self.pool.give_back(one.blocks)
        one.blocks = []

    def _draw(self, one: Running) -> Random:
        return Random(f"{self.seed}/blocks/{one.ask.req_id}/{one.length}")
