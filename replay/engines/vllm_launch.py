"""One engine step of vLLM from composition to result, and what it becomes on record. Writes nothing itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replay.canonical import text_sha256
from replay.engines.vllm_records import shape_class, step_graph_mode
from replay.logits import logit_fields
from replay.record import batch_fingerprint

if TYPE_CHECKING:
    from replay.record import Recorder


@dataclass
class Tracked:
    """What the recorder remembers of a live request. `recompute_until`: tokens whose KV it once had and lost."""

    request: Any
    queued_ns: int
    steps: int = 0
    cached_tokens: int = 0
    chunks: list[int] = field(default_factory=list)
    preempted: bool = False
    recompute_until: int = 0


@dataclass
class Launch:
    """One engine step between `schedule` and `update_from_output`.

    `rows`: (request, tokens scheduled, tokens computed before) in the scheduler's order. `output` is held so that
    its id stays its own. `blocks`: the physical KV blocks of each request as text, where they are to be hashed.
    """

    engine_step: int
    output: Any
    ts: float
    start_ns: int
    rows: list[tuple[str, int, int]]
    batch: dict[str, Any]
    blocks: dict[str, str] = field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs_before: dict[str, int] = field(default_factory=dict)


def composed(output: Any, engine_step: int, begun: tuple[float, int], batch: dict[str, Any]) -> tuple[Launch, set[str]]:
    """Return the launch that a SchedulerOutput describes, and the requests that it admits or admits again."""
    cached = output.scheduled_cached_reqs
    before = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    admitted = set(before) | set(cached.resumed_req_ids)
    before |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    rows = [(req_id, tokens, before[req_id]) for req_id, tokens in output.num_scheduled_tokens.items()]
    return Launch(engine_step, output, *begun, rows=rows, batch=batch), admitted


def step_state(tracked: Tracked, launch: Launch, tokens: int, computed: int, *, admitted: bool) -> dict[str, Any]:
    """Return the step record's fields that are known before the launch runs, and advance the request's memory."""
    plan: dict[str, Any] = {}
    state: dict[str, Any] = {
        "step": tracked.steps,
        "num_scheduled_tokens": tokens,
        "num_computed_tokens": computed,
        "plan": plan,
    }
    if tracked.steps == 0:
        state["queue_ms"] = round((launch.start_ns - tracked.queued_ns) / 1e6, 3)
    tracked.steps += 1
    if admitted:
        state["num_cached_tokens"] = plan["prefill.cached_prefix"] = tracked.cached_tokens = computed
        fetched = getattr(getattr(tracked.request, "prefill_stats", None), "num_external_cached_tokens", 0)
        if fetched:
            state["num_external_cached_tokens"] = fetched
        tracked.chunks.clear()
    if tracked.preempted:
        state |= {"preempted": True, "resumed": True}
        tracked.preempted = False
    if admitted or tracked.chunks:
        tracked.chunks.append(tokens)
        if computed + tokens >= tracked.request.num_tokens:  # the last chunk: the model has seen all there is
            plan["prefill.chunks"] = ",".join(map(str, tracked.chunks))
            tracked.chunks.clear()
    return state


def batch_fields(launch: Launch, order: dict[str, int], seen: dict[str, Any], configured_graph: str) -> dict[str, Any]:
    """Return the batch record of a launch that ran. `order` is the runner's: request → row."""
    rows = sorted(launch.rows, key=lambda row: order.get(row[0], len(order)))
    tokens, padded = sum(row[1] for row in rows), seen.get("padded_tokens")
    graph: str | None = None
    if "graph" in seen or not configured_graph.startswith("cuda_graph"):  # else a graph may have run unseen
        graph = step_graph_mode(seen.get("graph", "NONE"), configured_graph)
    plan: dict[str, Any] = {"batch.rows": len(rows), "batch.launch_tokens": tokens}
    if graph is not None:
        plan["graph.mode"] = graph
    block_map = "\n".join(launch.blocks[row[0]] for row in rows) if launch.blocks else None
    return launch.batch | {
        "engine_step": launch.engine_step,
        "ts": round(launch.ts, 6),
        "batch_size": len(rows),
        "batch_tokens": tokens,
        "padded_tokens": padded,
        "batch_fp": batch_fingerprint(rows),
        "shape": shape_class(tokens, len(rows), padded, graph),
        "graph_mode": graph,
        "block_map_sha256": None if block_map is None else text_sha256(block_map),
        "step_ms": round((time.monotonic_ns() - launch.start_ns) / 1e6, 3),
        "plan": plan,
    }


def add_chosen(
    state: dict[str, Any], recorder: Recorder, index: int, token: int, row: int | None, seen: dict[str, Any]
) -> None:
    """Add the step record's fields about the token that was chosen, and the logits it was chosen from."""
    tag = recorder.token_tag(index, token)
    state["token_index"], state["token_tag"] = index, tag
    if recorder.with_ids:
        state["token_id"] = token
    if row is None or "top_logits" not in seen:
        return
    logits, ids = seen["top_logits"][row], seen["top_token_ids"][row]
    state["logit_dtype"] = seen["logit_dtype"]
    state["top_token_tags"] = [tag if one == token else recorder.token_tag(index, one) for one in ids]
    if recorder.with_ids:
        state["top_token_ids"] = ids
    state |= logit_fields(logits)
    if "logits_sha256" in seen:
        state["logits_sha256"] = seen["logits_sha256"][row]
