"""What is hooked in one finished vLLM engine core, what that makes observable, and the engine record that says so.

The methods are internal to vLLM, so each is probed by name, not by version: what is missing is not observed, said
on stderr and on record.
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import replay
from replay import host
from replay.device import Sampler
from replay.engines import vllm_records as records
from replay.engines import vllm_worker
from replay.engines.vllm_kv import KvPool
from replay.engines.vllm_observer import Observer

if TYPE_CHECKING:
    from replay.record import Recorder

WORKER_ANSWER_SECONDS = 60
REQUEST_FIELDS = (
    "arrival_ts", "admission_ts", "arrival_step", "effective_token_ids_sha256", "effective_tokens", "context_limit",
    "decode_cfg_applied", "token_rule", "priority",
)  # fmt: skip
REQUEST_END_FIELDS = (
    "prefix_cache_used", "output_tokens", "output_token_ids_sha256", "finish_reason", "stop_reason", "finish_ts",
    "num_preemptions",
)  # fmt: skip
STEP_FIELDS = (
    "step", "engine_step", "row", "token_index", "token_tag", "num_scheduled_tokens", "num_computed_tokens",
    "num_cached_tokens", "queue_ms", "plan",
)  # fmt: skip
BATCH_FIELDS = (
    "engine_step", "queue_depth", "queue_deferred", "num_preempted", "batch_size", "batch_tokens", "batch_fp", "shape",
    "step_ms", "headroom_mb", "headroom_source", "kv_blocks_free", "kv_blocks_total", "kv_pool_total_mb", "paging_on",
    "plan",
)  # fmt: skip

WORKER_FIELDS = (
    ("top_logits", "step", ("top_logits", "top_token_tags", "margin", "logit_dtype")),
    ("padding", "batch", ("padded_tokens", "graph_mode")),
    ("logits_sha256", "step", ("logits_sha256",)),
)
OPT_IN = ("logits_sha256",)


def observe(core: Any, recorder: Recorder) -> list[str]:
    """Put the hooks around a core, its scheduler and its workers; return what they cannot observe."""
    scheduler, config = core.scheduler, core.vllm_config
    workers, blind = attach_workers(core)
    first = workers[0] if workers else {}
    fields = records.engine_fields(config)
    kv = records.kv_fields(scheduler.kv_cache_config, config.cache_config.block_size)
    threads = int(first.get("num_threads", fields["num_threads"]))
    pool = KvPool(scheduler, recorder, kv)
    observer = Observer(scheduler, recorder, pool, graph_mode=fields["graph_mode"], threads=threads)
    observes, missing = attach_scheduler(core, observer)
    if observes["batch"]:
        observes["batch"] += pool.observes
        observes["event"] += ["batch_limit_change", *(["eviction"] if "kv_blocks_evicted" in pool.observes else [])]
    for hook, kind, extra in WORKER_FIELDS:
        if first.get(hook):
            observes[kind].extend(extra)
        elif hook not in OPT_IN:
            missing.append(f"{kind}: {', '.join(extra)} ({blind or 'no such method in the model runner'})")
    if config.speculative_config is not None:
        missing.append("step: tokens after the first of one engine step (speculative decoding)")
    recorder.write(
        "engine",
        recorder="replay.engines.vllm",
        recorder_version=replay.__version__,
        host=socket.gethostname(),
        pid=os.getpid(),
        rank_hosts=[worker["host"] for worker in workers] or None,
        token_tag_key_id=recorder.tag_key_id,
        weights_version=getattr(core, "_weight_version", None),
        scheduler_limits=records.scheduler_limits(scheduler),
        attention_backend=first.get("attention_backend"),
        # This scheduler knows no tenants: any two requests may share a launch.
        **Sampler(recorder).engine_fields(observes, isolation={"shared_batching": True}),
        **kv,
        **fields | {"num_threads": threads, "environment": fields["environment"] | first.get("environment", {})},
    )
    if missing:
        recorder.write("event", what="recorder_limits", detail={"not_observed": missing})
    threading.Thread(target=_hash_model, args=(recorder, config.model_config), daemon=True).start()
    return missing


def attach_workers(core: Any) -> tuple[list[dict[str, Any]], str]:
    """Install the runner hooks in every worker, wherever it runs; return their answers, or why there are none."""
    try:
        return list(core.model_executor.collective_rpc(vllm_worker.attach, timeout=WORKER_ANSWER_SECONDS)), ""
    except Exception as fault:  # noqa: BLE001 - the scheduler alone is worth recording
        return [], f"workers did not take the hooks: {type(fault).__name__}: {fault}"


def attach_scheduler(core: Any, observer: Observer) -> tuple[dict[str, list[str]], list[str]]:
    """Install the hooks around the scheduler; return what they observe, and what they cannot."""
    wrap, scheduler = vllm_worker.wrap, core.scheduler
    digests = ["weights_sha256", "tokenizer_sha256"]
    observes: dict[str, list[str]] = {"engine": digests, "request": [], "step": [], "batch": [], "event": []}
    missing: list[str] = []
    hooks = (
        ("add_request", scheduler, observer.arrived, observer.arrival_noted, "request", REQUEST_FIELDS),
        ("_free_request", scheduler, None, observer.freed, "request", REQUEST_END_FIELDS),
        ("preprocess_add_request", core, observer.named, None, "request", ("external_req_id",)),
        ("_preempt_request", scheduler, observer.preempting, None, "event", ("preemption",)),
        ("finish_requests", scheduler, None, observer.finished_outside, "event", ("abort",)),
        ("reset_prefix_cache", scheduler, None, observer.prefix_cache_reset, "event", ("prefix_cache_reset",)),
        ("set_weight_version", core, observer.weights_changed, None, "event", ("weights_update",)),
        ("shutdown", core, observer.shutting_down, observer.gone, "event", ("shutdown",)),
    )
    for name, owner, before, after, kind, fields in hooks:
        if wrap(owner, name, before, after):
            observes[kind].extend(fields)
        else:
            missing.append(f"{kind}: {', '.join(fields)} (no method {name})")
    begun = wrap(scheduler, "schedule", observer.schedule_begins, observer.scheduled)
    if wrap(scheduler, "update_from_output", observer.update_begins, observer.updated) and begun:
        observes["step"], observes["batch"] = list(STEP_FIELDS), list(BATCH_FIELDS)
        if "preemption" in observes["event"]:
            observes["step"] += ["preempted", "resumed"]
    else:
        missing.append("step, batch (no methods schedule and update_from_output)")
    return observes, missing


def _hash_model(recorder: Recorder, config: Any) -> None:
    """Write the digests as a second part of the engine record. Runs in a thread: gigabytes take a while."""
    try:
        model = _folder(str(config.model), getattr(config, "revision", None))
        named = getattr(config, "tokenizer", None) or config.model
        same = str(named) == str(config.model)
        tokenizer = model if same else _folder(str(named), getattr(config, "tokenizer_revision", None))
        recorder.write("engine", **host.model_digests(model, tokenizer))
    except Exception as fault:  # noqa: BLE001 - the reason goes on record; the server goes on
        recorder.write("engine", weights_digest_status=f"{type(fault).__name__}: {fault}")


def _folder(name: str, revision: str | None) -> Path:
    """Return the folder of a model or tokenizer, from the local cache of the hub where the name is no folder."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, local_files_only=True))
