"""Build the engine of a record again, in this process, from its resolved configuration.

Only settings that decide what is composed or computed are taken over, by name, never one that loads code or opens a
port. What then resolves otherwise than on record is returned, so that a replay can say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay.case import configuration
from replay.engines.vllm_records import resolved_config

if TYPE_CHECKING:
    from collections.abc import Mapping

TAKEN = {
    "model_config": (
        "dtype", "seed", "max_model_len", "quantization", "enforce_eager", "disable_sliding_window",
        "disable_cascade_attn", "model_impl",
    ),
    "cache_config": (
        "block_size", "cache_dtype", "enable_prefix_caching", "prefix_caching_hash_algo", "kv_sharing_fast_prefill",
        "prefix_match_unit",
    ),
    "scheduler_config": (
        "max_num_batched_tokens", "max_num_seqs", "enable_chunked_prefill", "long_prefill_token_threshold",
        "long_prefill_token_threshold_adaptive", "policy", "scheduler_reserve_full_isl", "watermark",
        "prefill_schedule_interval", "stream_interval",
    ),
    "kernel_config": ("moe_backend", "linear_backend"),
    "attention_config": ("backend",),
}  # fmt: skip
"""Section of the recorded configuration → settings that an engine is built with."""

RENAMED = {"cache_dtype": "kv_cache_dtype", "policy": "scheduling_policy", "backend": "attention_backend"}
COMPARED = {**TAKEN, "parallel_config": ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
            "compilation_config": ("mode", "cudagraph_mode")}  # fmt: skip


def arguments(engine: Mapping[str, Any], model_path: str) -> dict[str, Any]:
    """Return the arguments of vLLM's EngineArgs that an engine record stands for."""
    config = configuration(engine)
    found = {
        RENAMED.get(name, name): (config.get(section) or {}).get(name)
        for section, names in TAKEN.items()
        for name in names
    }
    found |= (engine.get("scheduler_limits") or {}) | {"num_gpu_blocks_override": engine.get("kv_blocks_total")}
    found["scheduling_policy"] = found.pop("policy", None) or found["scheduling_policy"]
    given = {name: value for name, value in found.items() if value is not None}
    return given | {"model": model_path, "tokenizer": model_path, "async_scheduling": False, "disable_log_stats": True}


def build(given: dict[str, Any]) -> Any:
    """Return a started engine core. Whatever vLLM refuses is raised as it comes."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    config = EngineArgs(**given).create_engine_config(UsageContext.LLM_CLASS)
    return EngineCore(config, Executor.get_class(config), log_stats=False)


def device() -> str:
    """Return what kind of device vLLM runs on here: cpu, cuda, …"""
    from vllm.platforms import current_platform

    return str(current_platform.device_type)


def otherwise(engine: Mapping[str, Any], vllm_config: Any, pinned: Mapping[str, Any]) -> list[str]:
    """Return 'setting: recorded, here' for the settings that did not resolve as recorded, those pinned aside."""
    then, now = configuration(engine), resolved_config(vllm_config)
    found = []
    for section, names in COMPARED.items():
        for name in names:
            was, here = ((one.get(section) or {}).get(name) for one in (then, now))
            if was is not None and was != here and RENAMED.get(name, name) not in pinned:
                found.append(f"{section}.{name}: {was} on record, {here} here")
    return found
