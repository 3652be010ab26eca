"""The two request records of continuous batching: what a request is when it arrives, and how it ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replay.engines.transformers_facts import SAMPLING
from replay.record import token_ids_sha256

if TYPE_CHECKING:
    from replay.engines.transformers_batches import Loop


@dataclass
class Request:
    """What is remembered of a request. `entry`: fields for the step in which it next joins a batch.

    `arrived`: time.perf_counter() when the scheduler got it. `running`: it has joined one and was not put out since.
    """

    arrived: float
    steps: int = 0
    cached: int = 0
    cache_used: bool = False
    running: bool = False
    entry: dict[str, Any] = field(default_factory=dict)


def write_arrival(loop: Loop, state: Any, req_id: str, block_hashes: list[int] | None) -> None:
    """Write x, as the model will see it. `block_hashes`: the engine's own, of the full blocks of the prompt."""
    sampled, recorder, now = bool(loop.config.do_sample), loop.run.recorder, time.perf_counter()
    loop.requests[req_id] = Request(arrived=now)
    wall = time.time()
    applied = {"temperature": 0, "max_tokens": state.max_new_tokens, "stop_token_ids": sorted(state._eos_token_ids)}
    if sampled:
        applied |= {name: getattr(loop.config, name, None) for name in SAMPLING}
    applied |= state.logit_processor_kwargs
    recorder.write(
        "request",
        req_id=req_id,
        arrival_ts=round(wall - (now - state.created_time), 6),
        admission_ts=round(wall, 6),
        arrival_step=loop.run.next_step,
        effective_token_ids_sha256=token_ids_sha256(state.initial_tokens),
        effective_tokens=len(state.initial_tokens),
        effective_token_ids=list(state.initial_tokens) if recorder.with_ids else None,
        block_hashes=[recorder.token_tag(at, key) for at, key in enumerate(block_hashes)] if block_hashes else None,
        decode_cfg_applied={name: value for name, value in applied.items() if value not in (None, [])},
        token_rule="sample" if sampled else "argmax",
    )


def write_end(loop: Loop, state: Any, reason: str | None = None) -> None:
    """Write what came out of a request and why it ended; once, whoever ends it first. `reason`: else as its tokens say.

    A request that failed before it arrived has no first part.
    """
    request = loop.requests.pop(state.request_id, None)
    if request is None and reason != "error":
        return
    recorder, outputs = loop.run.recorder, earlier_outputs(state) + list(state.generated_tokens)
    recorder.write(
        "request",
        req_id=state.request_id,
        prefix_cache_used=request.cache_used if request and request.steps else None,
        finish_ts=round(time.time(), 6),
        finish_reason=reason or ("stop" if outputs and outputs[-1] in state._eos_token_ids else "length"),
        output_token_ids=outputs if recorder.with_ids else None,
        output_token_ids_sha256=token_ids_sha256(outputs),
        output_tokens=len(outputs),
    )


def earlier_outputs(state: Any) -> list[int]:
    """Return output tokens that a soft reset has moved into the prompt."""
    return list(state.initial_tokens[state._true_initial_tokens :]) if state._true_initial_tokens else []
