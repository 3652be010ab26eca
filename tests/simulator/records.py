"""What the records of one run say: the facts of the simulation in the words of the execution contract."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.simulator.device import WORKSPACE_MB
from tests.simulator.memory import BLOCK_MB, BLOCK_TOKENS, POOL_BLOCKS, POOL_MB
from tests.simulator.scheduler import MAX_ROWS
from tests.simulator.traffic import CONTEXT_LIMIT, sha

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.simulator.numerics import Chosen
    from tests.simulator.replica import Launch, Row
    from tests.simulator.traffic import Shaping

    Wall = Callable[[int, float], float]
    Record = dict[str, Any]

MODEL = "simulated-8b"
SAMPLE_EVERY = 12  # launches between two samples of a device
OBSERVED = {
    "step": "step engine_step row token_index token_id num_scheduled_tokens num_computed_tokens num_cached_tokens"
    " queue_ms preempted resumed top_logits top_token_ids margin logit_dtype logits_sha256",
    "batch": "batch_size batch_tokens padded_tokens batch_fp shape graph_mode step_ms gpu_ms vram_free_mb headroom_mb"
    " headroom_source largest_free_block_mb workspace_free_mb workspace_required_mb kv_blocks_free kv_blocks_total"
    " kv_pool_total_mb block_map_sha256 paging_on precision_path algo_id kernel_variant isolation_mode isr_pinned_mb"
    " ckpt_pinned_mb requant_cycles fallback_reason queue_depth num_preempted",
    "collective": "comm_id seq_no bytes start_ts end_ts comm_ms compute_ms algo retransmits",
    "kernel": "dur_us l2_hit_rate stall_long_scoreboard",
    "device": "vram_free_mb sm_clock_mhz",
    "event": "preemption offload restore batch_limit_change checkpoint_begin checkpoint_end replication_begin"
    " replication_end shutdown",
    "request": "arrival_ts admission_ts arrival_step effective_token_ids_sha256 effective_tokens context_limit"
    " tokens_before_truncation truncated trunc_boundary decode_cfg_requested decode_cfg_applied token_rule"
    " shaping_events policy_gates routing_template_version prefix_cache_used isolation_mode output_token_ids"
    " num_preemptions",
}


@dataclass(frozen=True)
class Facts:
    """What one run says of itself. engine: members of its engine record that differ; unseen: kind.field not seen."""

    run_id: str
    replica_id: str
    weights: str
    token_rule: str
    engine: Record = field(default_factory=dict)
    unseen: frozenset[str] = frozenset()

    def sees(self, kind: str, name: str) -> bool:
        """Return whether the recorder of this run observes that field, or that event."""
        return f"{kind}.{name}" not in self.unseen


def engine(facts: Facts, hosts: Sequence[str], clock: Record) -> Record:
    """Return the engine record."""
    observes = {kind: [one for one in names.split() if facts.sees(kind, one)] for kind, names in OBSERVED.items()}
    return {
        "kind": "engine", "recorder": "tests.simulator", "recorder_version": "1", "engine": "simulator",
        "engine_version": "1.0", "versions": {"cublasLt": "13.0.1"}, "environment": {"NCCL_ALGO": "Ring"},
        "driver": "580.1", "config": {"max_model_len": CONTEXT_LIMIT, "max_num_seqs": MAX_ROWS}, "model_id": MODEL,
        "served_model_name": MODEL, "weights_sha256": sha("weights", facts.weights), "num_layers": 32, "num_heads": 32,
        "num_kv_heads": 8, "head_size": 128, "hidden_size": 4096, "vocab_size": 32100, "dtype": "bfloat16",
        "quantization": "fp8", "expected_precision_path": "fp8", "tp_size": len(hosts), "pp_size": 1, "dp_size": 1,
        "rank_hosts": list(hosts), "graph_mode": "cuda_graph", "batch_invariant": False, "async_scheduling": False,
        "scheduler_limits": {"max_num_seqs": MAX_ROWS}, "isolation": {"shared_batching": True, "mig": False},
        "device": "Simulated GPU", "device_type": "cuda", "device_count": len(hosts), "host": hosts[0], "pid": 4242,
        "kv_block_size": BLOCK_TOKENS, "kv_blocks_total": POOL_BLOCKS, "kv_block_bytes": int(BLOCK_MB * 2**20),
        "memory_bandwidth_gb_s": 3000.0, "clock": clock,
        "observes": {kind: names for kind, names in observes.items() if names},
    } | facts.engine  # fmt: skip


def of_launch(
    before: Launch, launch: Launch, said: dict[str, list[Chosen]], wall: Wall
) -> Iterator[tuple[int, Record]]:
    """Yield (rank, record) of everything that one launch writes."""
    number, now = launch.number, launch.now
    for what, detail, req_id in _events(before, launch):
        yield 0, {"kind": "event", "engine_step": number, "what": what, "req_id": req_id, "detail": detail}
    for rank in range(len(launch.works)):
        yield rank, _batch(launch, rank)
        for order, one in enumerate(launch.collectives):
            begin, end = launch.start + one.starts[rank], launch.start + one.end
            yield rank, {
                "kind": "collective", "engine_step": number, "rank": rank, "comm_id": "tp", "op": "all_reduce",
                "seq_no": number * len(launch.collectives) + order, "bytes": one.bytes, "start_ts": wall(rank, begin),
                "end_ts": wall(rank, end), "comm_ms": round(1000 * (end - begin), 4),
                "compute_ms": round(one.compute_ms[rank], 4), "algo": "ring", "retransmits": one.retransmits,
            }  # fmt: skip
        if number % SAMPLE_EVERY == 0:
            yield rank, {
                "kind": "device", "rank": rank, "gpu_uuid": f"GPU-{rank}", "device_type": "cuda",
                "vram_free_mb": round(launch.memory.vram_free, 1), "sm_clock_mhz": float(round(1980 / now.all_slow)),
            }  # fmt: skip
    if not launch.prefill:
        yield 0, {
            "kind": "kernel", "rank": 0, "engine_step": number, "op": "attention", "role": "attention",
            "name": "paged_decode", "start_ts": wall(0, launch.start),
            "dur_us": round(sum(one.computed for one in launch.rows) * 0.1 * (1 + 4 * now.block_scatter), 2),
            "l2_hit_rate": round(0.72 - 0.5 * now.block_scatter, 3),
            "stall_long_scoreboard": round(0.2 + 0.5 * now.block_scatter, 3),
        }  # fmt: skip
    for row, one in enumerate(launch.rows):
        yield 0, _step(launch, row, one, said[one.ask.req_id])


def _events(before: Launch, launch: Launch) -> Iterator[tuple[str, Record, str | None]]:
    for what, name in (("checkpoint", "ckpt_pinned_mb"), ("replication", "isr_pinned_mb")):
        was, held = getattr(before.now, name), getattr(launch.now, name)
        if bool(was) != bool(held):
            yield f"{what}_{'begin' if held else 'end'}", {"pinned_mb": max(was, held)}, None
    for one in launch.events:
        yield one.what, one.detail, one.req_id


def _batch(launch: Launch, rank: int) -> Record:
    now, memory, work = launch.now, launch.memory, launch.works[rank]
    return {
        "kind": "batch", "engine_step": launch.number, "rank": rank, "queue_depth": launch.queue_depth,
        "num_preempted": launch.preempted, "batch_size": len(launch.rows), "batch_tokens": launch.tokens,
        "padded_tokens": launch.padded, "shape": launch.shape, "graph_mode": now.graph,
        "batch_fp": sha([(one.ask.req_id, one.scheduled, one.computed) for one in launch.rows])[:16],
        "step_ms": round(1000 * (launch.end - launch.start), 3), "gpu_ms": round(work.compute_ms, 3),
        "vram_free_mb": round(memory.vram_free, 1), "headroom_mb": round(memory.vram_free, 1),
        "headroom_source": "device+kv_pool", "largest_free_block_mb": round(memory.largest_block, 1),
        "workspace_free_mb": round(memory.workspace_free, 1), "workspace_required_mb": WORKSPACE_MB,
        "kv_blocks_free": launch.free_blocks, "kv_blocks_total": POOL_BLOCKS, "kv_pool_total_mb": POOL_MB,
        "block_map_sha256": sha([one.blocks for one in launch.rows]), "paging_on": launch.paging,
        "precision_path": work.path, "algo_id": work.algo, "kernel_variant": work.variant,
        "isolation_mode": now.isolation, "isr_pinned_mb": now.isr_pinned_mb, "ckpt_pinned_mb": now.ckpt_pinned_mb,
        "requant_cycles": work.requant_cycles, "fallback_reason": work.fallback_reason,
    }  # fmt: skip


def _step(launch: Launch, row: int, one: Row, said: list[Chosen]) -> Record:
    chosen = said[one.token_index]
    return {
        "kind": "step", "req_id": one.ask.req_id, "engine_step": launch.number, "row": row, "step": one.step,
        "num_scheduled_tokens": one.scheduled, "num_computed_tokens": one.computed,
        "num_cached_tokens": one.cached if launch.prefill else None,
        "queue_ms": None if one.queue_ms is None else round(one.queue_ms, 3), "preempted": one.resumed,
        "resumed": one.resumed, "token_index": one.token_index, "token_id": chosen.token, "top_token_ids": chosen.ids,
        "top_logits": chosen.logits, "logit_dtype": "bfloat16", "margin": chosen.logits[0] - chosen.logits[1],
        "logits_sha256": chosen.sha256,
    }  # fmt: skip


def requests(
    facts: Facts, launches: Sequence[Launch], said: dict[str, list[Chosen]], wall: Wall
) -> Iterator[tuple[float, Record]]:
    """Yield (end, request record) of everybody who was served, once their last launch is over."""
    first: dict[str, Row] = {}
    last: dict[str, tuple[Row, float]] = {}
    for launch in launches:
        for one in launch.rows:
            first.setdefault(one.ask.req_id, one)
            last[one.ask.req_id] = one, launch.end
    isolation = launches[0].now.isolation
    limit = facts.engine.get("config", {}).get("max_model_len", CONTEXT_LIMIT)
    for name, row in first.items():
        ask, (final, end) = row.ask, last[name]
        tokens = [one.token for one in said[name][: final.token_index + 1]]
        done, cut = len(tokens) == ask.output_tokens, ask.tokens < ask.tokens_before
        yield end, {
            "kind": "request", "req_id": name, "external_req_id": name, "served_model_name": MODEL,
            "tenant_sha256": sha("tenant", ask.tenant), "arrival_ts": wall(0, ask.arrival),
            "admission_ts": wall(0, row.launched), "finish_ts": wall(0, end) if done else None,
            "arrival_step": row.arrival_step, "raw_prompt_sha256": sha("raw", ask.prompt),
            "effective_text_sha256": sha("text", ask.text), "effective_token_ids_sha256": sha("ids", ask.text),
            "effective_tokens": ask.tokens, "tokens_before_truncation": ask.tokens_before, "truncated": cut,
            "context_limit": limit, "trunc_side": "left" if cut else None,
            "trunc_reason": "truncate_prompt_tokens" if cut else None,
            "trunc_boundary": ask.tokens_before - ask.tokens if cut else None,
            "decode_cfg_requested": {"temperature": 0.0, "max_tokens": ask.output_tokens},
            "decode_cfg_applied": {**ask.decode, "max_tokens": ask.output_tokens}, "token_rule": facts.token_rule,
            "shaping_events": _shaped(ask.shaping), "policy_gates": [{"what": "pii", "action": "pass"}],
            "prefix_cache_used": row.cached > 0, "prefix_cache_key": ask.prefix if row.cached else None,
            "routing_template_version": ask.shaping.template,
            "tool_schemas_sha256": sha(ask.shaping.tools) if ask.shaping.tools else None, "isolation_mode": isolation,
            "cross_tenant_batching": isolation != "strict", "output_token_ids": tokens if done else None,
            "output_token_ids_sha256": _ids_sha256(tokens) if done else None, "output_tokens": len(tokens),
            "finish_reason": "length" if done else "abort", "num_preemptions": final.preemptions,
        }  # fmt: skip


def _shaped(shaping: Shaping) -> list[Record]:
    named = {"truncate_prompt_tokens": shaping.truncate_to, "policy_injection": shaping.policy,
             "tool_schemas": shaping.tools, "safety_rewrite": shaping.rewrite}  # fmt: skip
    return [{"what": what, "value": value} for what, value in named.items() if value is not None]


def _ids_sha256(tokens: list[int]) -> str:
    return hashlib.sha256(struct.pack(f"<{len(tokens)}I", *tokens)).hexdigest()
