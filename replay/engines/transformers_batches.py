"""One batch of transformers' continuous batching, from its preparation to its records."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replay.record import token_ids_sha256

if TYPE_CHECKING:
    from replay.engines.transformers_record import Run


@dataclass(frozen=True)
class Row:
    """One request in a batch: its state, tokens scheduled, tokens computed before, whether a token is chosen."""

    state: Any
    scheduled: int
    computed: int
    samples: bool


@dataclass
class Batch:
    """One prepared batch. `logits`: fields of the rows that choose a token, in order, where they could be read."""

    step: int
    rows: list[Row]
    fields: dict[str, Any]
    resumed: set[str]
    logits: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Loop:
    """What is known of one batch processor. `steps` counts each request's own steps."""

    run: Run
    config: Any
    batches: deque[Batch] = field(default_factory=deque)
    steps: dict[str, int] = field(default_factory=dict)
    evicted: set[str] = field(default_factory=set)
    paged: bool = False


def write_batch(loop: Loop, batch: Batch, before: list[int]) -> None:
    """Write a batch that has been read. `before`: how many tokens each row's state held until then."""
    loop.run.recorder.write("batch", engine_step=batch.step, **batch.fields)
    samples = iter(batch.logits)
    for position, (row, held) in enumerate(zip(batch.rows, before, strict=True)):
        logits = next(samples, {}) if row.samples else {}
        emitted = row.state.generated_tokens[held] if len(row.state.generated_tokens) > held else None
        _write_step(loop, batch, position, row, held, emitted, dict(logits))
        if row.state.status.name == "FINISHED" and emitted is not None:
            _write_end(loop, row.state)


def _earlier_outputs(state: Any) -> list[int]:
    """Return output tokens that a soft reset has moved into the prompt."""
    return list(state.initial_tokens[state._true_initial_tokens :]) if state._true_initial_tokens else []


def _write_step(
    loop: Loop, batch: Batch, position: int, row: Row, held: int, token: int | None, logits: dict[str, Any]
) -> None:
    recorder, req_id = loop.run.recorder, row.state.request_id
    index, own_step = len(_earlier_outputs(row.state)) + held, loop.steps.get(req_id, 0)
    loop.steps[req_id] = own_step + 1
    ids, values = logits.pop("ids", None), logits.get("top_logits")
    recorder.write(
        "step",
        req_id=req_id,
        engine_step=batch.step,
        step=own_step,
        row=position,
        ts=batch.fields["ts"],
        num_scheduled_tokens=row.scheduled,
        num_computed_tokens=row.computed,
        resumed=req_id in batch.resumed,
        queue_ms=_queue_ms(row.state) if own_step == 0 else None,
        token_index=None if token is None else index,
        token_tag=None if token is None else recorder.token_tag(index, token),
        token_id=token if recorder.with_ids else None,
        top_token_tags=[recorder.token_tag(index, one) for one in ids] if ids else None,
        top_token_ids=ids if recorder.with_ids else None,
        margin=values[0] - values[1] if values and len(values) > 1 else None,
        **logits,
    )


def _queue_ms(state: Any) -> float | None:
    started = state.lifespan[0]
    return round((started - state.created_time) * 1e3, 3) if started > 0 else None


def _write_end(loop: Loop, state: Any) -> None:
    recorder, outputs = loop.run.recorder, _earlier_outputs(state) + list(state.generated_tokens)
    recorder.write(
        "request",
        req_id=state.request_id,
        finish_ts=round(time.time(), 6),
        finish_reason="stop" if outputs[-1] in state._eos_token_ids else "length",
        output_token_ids=outputs if recorder.with_ids else None,
        output_token_ids_sha256=token_ids_sha256(outputs),
        output_tokens=len(outputs),
    )
