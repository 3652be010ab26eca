"""The admission rule of a continuous-batching scheduler, run again on recorded arrivals: who shares a launch?

The rule is that of vLLM 0.32, `Scheduler.schedule` and `KVCacheManager.allocate_slots`, first come first served,
without a prefix cache: running requests first, in order, each its next token or the rest of its prompt as far as the
token budget goes; where KV blocks lack, the last of the running loses its own and waits in front; if nobody lost any,
those who wait come in while there is budget, a row, and room for their whole prompt. Engine steps are the clock.

It is a model. What it says counts only where it reproduces what was recorded: `reproduced` tells in how many steps.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from replay.case import configuration, section

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from replay.case import Composition, Window

Rows = dict[str, tuple[int, int]]
"""Request → (tokens scheduled, tokens computed before) of one launch."""


@dataclass(frozen=True)
class Limits:
    """What bounds a launch: rows, tokens, and KV blocks of so many tokens. blocks: those that a request can get."""

    rows: int
    tokens: int
    blocks: int
    block_size: int

    def of(self, tokens: int) -> int:
        """Return how many blocks so many tokens take."""
        return -(-tokens // self.block_size)


@dataclass
class _Request:
    """A request on its way: tokens it has (prompt and answer so far), computed of them, answered."""

    req_id: str
    tokens: int
    answer: int
    computed: int = 0
    answered: int = 0


def limits(engine: dict[str, Any] | None) -> Limits | str:
    """Return the limits that an engine record states, or why the rule does not apply to this engine."""
    if (engine or {}).get("engine") != "vllm":
        return f"the rule is vLLM's, and the engine is {(engine or {}).get('engine') or 'not on record'}"
    config = configuration(engine or {})
    scheduler, cache = section(engine or {}, "scheduler_config"), section(engine or {}, "cache_config")
    if cache.get("enable_prefix_caching", True):
        return "the engine keeps the KV of prefixes, which the rule does not follow"
    for name, asked in (("policy", "fcfs"), ("enable_chunked_prefill", True), ("long_prefill_token_threshold", 0)):
        if scheduler.get(name) != asked:
            return f"scheduler_config.{name} is {scheduler.get(name)!r}; the rule is that of {asked!r}"
    if scheduler.get("async_scheduling") or config.get("speculative_config"):
        return "steps are scheduled ahead of their tokens, which the rule does not follow"
    rows, tokens = scheduler.get("max_num_seqs"), scheduler.get("max_num_batched_tokens")
    blocks, size = cache.get("num_gpu_blocks"), cache.get("block_size")
    if not (_count(rows) and _count(tokens) and _count(blocks) and _count(size)):
        return "max_num_seqs, max_num_batched_tokens, num_gpu_blocks or block_size is not on record"
    # Block 0 is a placeholder that nobody gets (vllm/v1/core/block_pool.py).
    return Limits(rows, tokens, blocks - 1, size)


def _count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and value > 0


@dataclass
class _Scheduler:
    """The state between two steps."""

    limits: Limits
    running: list[_Request] = field(default_factory=list)
    waiting: deque[_Request] = field(default_factory=deque)

    def preempt(self) -> int:
        """Take the KV of the last running request, which waits in front; return how many blocks that frees."""
        last = self.running.pop()
        freed = self.limits.of(last.computed)
        last.computed = 0
        self.waiting.appendleft(last)
        return freed

    def launch(self) -> Rows:
        """Compose one launch and compute it."""
        rows: Rows = {}
        budget, lost = self.limits.tokens, False
        place, free = 0, self.limits.blocks - sum(self.limits.of(one.computed) for one in self.running)
        while place < len(self.running) and budget > 0:
            one = self.running[place]
            fresh = min(one.tokens - one.computed, budget)
            more = self.limits.of(one.computed + fresh) - self.limits.of(one.computed)
            while more > free and place < len(self.running):
                free += self.preempt()
                lost = True
            if place >= len(self.running):
                break  # it lost its own
            rows[one.req_id] = (fresh, one.computed)
            free -= more
            budget -= fresh
            place += 1
        while self.waiting and not lost and budget > 0 and len(self.running) < self.limits.rows:
            one = self.waiting[0]
            if self.limits.of(one.tokens) > free:
                break
            fresh = min(one.tokens, budget)
            rows[one.req_id] = (fresh, 0)
            free -= self.limits.of(fresh)
            budget -= fresh
            self.running.append(self.waiting.popleft())
        self._compute(rows)
        return rows

    def _compute(self, rows: Rows) -> None:
        for one in self.running:
            one.computed += rows.get(one.req_id, (0, 0))[0]
            if one.req_id in rows and one.computed == one.tokens:
                one.tokens += 1
                one.answered += 1
        self.running = [one for one in self.running if one.answered < one.answer]


def schedule(window: Window, bounds: Limits, without: Iterable[str] = ()) -> dict[int, Rows] | str:
    """Return who shares each launch of a window under the rule, or why that cannot be told.

    without: requests that never arrive. Orders from outside (aborts, a reset that takes KV) are given as recorded.
    """
    left_out = set(without)
    asked = [one for one in window.requests if one.req_id not in left_out]
    if unknown := [one.req_id for one in asked if one.output_tokens is None]:
        return f"how long the answers of {len(unknown)} requests became is not on record"
    coming = deque(sorted(asked, key=lambda one: one.arrival_step))
    gone = {order.detail.get("req_id"): order.engine_step for order in window.orders if order.what == "abort"}
    resets = {order.engine_step for order in window.orders
              if order.what == "prefix_cache_reset" and order.detail.get("reset_running_requests")}  # fmt: skip
    state, launches = _Scheduler(bounds), {}
    for step, _ in window.schedule:
        while coming and coming[0].arrival_step <= step:
            one = coming.popleft()
            state.waiting.append(_Request(one.req_id, one.tokens, one.output_tokens or 0))
        state.running = [one for one in state.running if gone.get(one.req_id, step + 1) > step]
        state.waiting = deque(one for one in state.waiting if gone.get(one.req_id, step + 1) > step)
        while step in resets and state.running:
            state.preempt()
        launches[step] = state.launch()
    return launches


def reproduced(recorded: Sequence[tuple[int, Composition]], launches: dict[int, Rows]) -> list[int]:
    """Return the engine steps whose launch is not the recorded one: another request, or other tokens of one."""
    return [
        step for step, rows in recorded if {name: (tokens, before) for name, tokens, before in rows} != launches[step]
    ]
