"""One batch of transformers' continuous batching, from its preparation to its records."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from replay.engines.transformers_facts import dtype_name
from replay.engines.transformers_requests import Request, earlier_outputs, write_end
from replay.host import MIB
from replay.logits import logit_fields
from replay.record import batch_fingerprint

if TYPE_CHECKING:
    from replay.engines.transformers_record import Run


@dataclass(frozen=True)
class Row:
    """One request in a batch: its state, tokens scheduled, tokens computed before, whether a token is chosen.

    `entry`: what the step says of a request that joins, or joins again.
    """

    state: Any
    request: Request
    scheduled: int
    computed: int
    samples: bool
    entry: dict[str, Any]


@dataclass
class Batch:
    """One prepared batch. `logits`: fields of the rows that choose a token, in order, where they could be read."""

    step: int
    rows: list[Row]
    fields: dict[str, Any]
    logits: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Loop:
    """What is known of one batch processor. `starved`, `preempted`, `paged` gather until the next batch is prepared.

    `compiled`: torch.compile had taken parts of the model when the loop began.
    """

    run: Run
    config: Any
    batches: deque[Batch] = field(default_factory=deque)
    requests: dict[str, Request] = field(default_factory=dict)
    compiled: bool = False
    starved: set[str] = field(default_factory=set)
    preempted: int = 0
    paged: bool = False

    def forget(self) -> None:
        """Start over: the engine has dropped its batches and requests."""
        self.batches.clear()
        self.requests.clear()
        self.starved, self.preempted, self.paged = set(), 0, False

    def event(self, what: str, req_id: str, detail: dict[str, Any]) -> None:
        """Write what happened to a request before the next engine step."""
        self.run.recorder.write("event", what=what, req_id=req_id, engine_step=self.run.next_step, detail=detail)


def host_io(processor: Any) -> Any:
    """Return the inputs of the batch that was just prepared; asynchronous batching holds two."""
    io = processor.inputs_and_outputs
    return io.io_pairs[io.current_pair].host_io if hasattr(io, "io_pairs") else io


def read_row(loop: Loop, one: Any) -> Row:
    """Return a row of the batch that was just prepared. Its state already counts the tokens that it will compute."""
    state, request = one.state, loop.requests[one.state.request_id]
    computed = state.position_offset - one.query_length
    entry, request.entry = request.entry, {}
    if not request.running:
        request.running = True
        request.cache_used |= request.cached > 0
        entry |= {"num_cached_tokens": request.cached, "plan": {"prefill.cached_prefix": str(request.cached)}}
        request.cached = 0
        if request.steps == 0 and "preempted" not in entry:
            entry["queue_ms"] = round((state.lifespan[0] - request.arrived) * 1e3, 3)
    return Row(state, request, one.query_length, computed, bool(one.has_new_token), entry)


def batch_fields(loop: Loop, processor: Any, rows: list[Row]) -> dict[str, Any]:
    """Return the batch record's fields that are known before the batch runs."""
    cache, scheduler = processor.cache, processor.scheduler
    total, free, tokens = int(cache.num_blocks), cache.compute_free_capacity(), sum(row.scheduled for row in rows)
    pool_mb, vram = cache.num_sectors * cache.bytes_per_sector / MIB, loop.run.memory.device_mb()
    return {
        "ts": round(time.time(), 6),
        "batch_size": len(rows),
        "batch_tokens": tokens,
        "padded_tokens": int(host_io(processor).num_q_tokens),
        "batch_fp": batch_fingerprint((row.state.request_id, row.scheduled, row.computed) for row in rows),
        "queue_depth": len(scheduler.waiting_requests),
        "num_starved": len(loop.starved),
        "num_preempted": loop.preempted,
        "kv_blocks_total": total,
        "kv_blocks_free": round(free * total),
        "kv_pool_total_mb": round(pool_mb, 3),
        "vram_free_mb": vram,
        "headroom_mb": round(free * pool_mb + (vram or 0.0), 3),
        "headroom_source": "kv_pool" if vram is None else "device+kv_pool",
        "paging_on": loop.paged or any("resumed" in row.entry for row in rows),
        "plan": {
            "batch.rows": str(len(rows)),
            "batch.launch_tokens": str(tokens),
            "attention.backend": "paged",
            "dtype.weights": dtype_name(processor.model_dtype),
            "cpu.threads": str(torch.get_num_threads()),
            "token.rule": "sample" if processor.do_sample else "argmax",
        },
    }


def write_batch(loop: Loop, batch: Batch, before: list[int]) -> None:
    """Write a batch that has been read. `before`: how many tokens each row's state held until then."""
    loop.run.recorder.write("batch", engine_step=batch.step, **batch.fields)
    samples = iter(batch.logits)
    for position, (row, held) in enumerate(zip(batch.rows, before, strict=True)):
        logits = next(samples, {}) if row.samples else {}
        emitted = row.state.generated_tokens[held] if len(row.state.generated_tokens) > held else None
        _write_step(loop, batch, position, row, held, emitted, dict(logits))
        if row.state.status.name == "FINISHED" and emitted is not None:
            write_end(loop, row.state)


def _write_step(
    loop: Loop, batch: Batch, position: int, row: Row, held: int, token: int | None, logits: dict[str, Any]
) -> None:
    recorder, index = loop.run.recorder, len(earlier_outputs(row.state)) + held
    ids, values = logits.pop("ids", None), logits.pop("top_logits", None)
    recorder.write(
        "step",
        req_id=row.state.request_id,
        engine_step=batch.step,
        step=row.request.steps,
        row=position,
        ts=batch.fields["ts"],
        num_scheduled_tokens=row.scheduled,
        num_computed_tokens=row.computed,
        token_index=None if token is None else index,
        token_tag=None if token is None else recorder.token_tag(index, token),
        token_id=token if recorder.with_ids else None,
        top_token_tags=[recorder.token_tag(index, one) for one in ids] if ids else None,
        top_token_ids=ids if recorder.with_ids else None,
        **(logit_fields(values) if values else {}),
        **logits,
        **row.entry,
    )
    row.request.steps += 1
