"""What a replay of vLLM covers: seen in the recorded configuration, before anything starts. Standard library.

`uncovered` refuses, `reservations` say what may come out otherwise although nothing is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.case import Case

REFUSED = (
    ("scheduler_config.async_scheduling", "async scheduling, which composes a step before it knows the last tokens"),
    ("speculative_config", "speculative decoding"),
    ("lora_config", "LoRA adapters"),
    ("kv_transfer_config", "a KV connector"),
    ("ec_transfer_config", "an encoder cache connector"),
    ("parallel_config.enable_expert_parallel", "expert parallelism"),
)  # fmt: skip
"""Setting that is on → what this version does not replay."""
PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size")
PLAIN = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "max_tokens", "min_tokens", "ignore_eos", "stop_token_ids", "logit_bias", "allowed_token_ids",
)  # fmt: skip
"""Decode settings that the engine core itself applies, without a tokenizer or a random generator."""
ASIDE = ("stop",)
"""Stop strings are found outside of the engine core, which is told to abort: the abort is on record by itself."""
INHERITED = {
    "OMP_NUM_THREADS": r"[0-9]{1,4}", "OMP_WAIT_POLICY": r"\w+", "GOMP_SPINCOUNT": r"\w+",
    "VLLM_CPU_OMP_THREADS_BIND": r"[\w,|-]+", "VLLM_BATCH_INVARIANT": r"[01]", "MKL_CBWR": r"[\w,]+",
    "ONEDNN_MAX_CPU_ISA": r"\w+", "ATEN_CPU_CAPABILITY": r"\w+", "CUBLAS_WORKSPACE_CONFIG": r"[\w:]+",
}  # fmt: skip
"""Variables that a child takes over from the record, and what their values must look like."""
SET = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
"""The engine core in the child's own process; the pool's size comes from the record's number of blocks."""


def uncovered(case: Case, config: dict[str, Any]) -> str | None:
    """Return what of the case this version does not replay, or None. Looks at settings, starts nothing."""
    for arm in (case.incident, case.reference):
        if arm.window is None:
            return "the case holds no window of its run; write it again from the log with `forensics case`"
    if not config:
        return "the engine record holds no resolved configuration (config): record with this recorder"
    for path, what in REFUSED:
        if _setting(config, path) not in (None, False, {}, ""):
            return f"the engine ran with {what}; this version does not replay that"
    parallel = {name: _setting(config, f"parallel_config.{name}") for name in PARALLEL}
    if split := [f"{name}={size}" for name, size in parallel.items() if isinstance(size, int) and size > 1]:
        return f"the engine ran with {', '.join(split)}; this version replays one worker"
    if odd := sorted(case.decode_cfg.keys() - {*PLAIN, *ASIDE}):
        return f"the request used {', '.join(odd)}; this version does not replay that"
    if _second_runner(case.engine):
        return "the engine ran vLLM's V2 model runner; this version replays the first"
    return None


def reservations(case: Case, config: dict[str, Any]) -> Iterator[str]:
    """Yield what may come out otherwise than on record, a sentence each."""
    if _experts(config):
        yield ("the model is a mixture of experts: what others say can move a request to another expert's launch, so "
               "random stand-ins for their ids may change its bits")  # fmt: skip
    mode = _setting(config, "compilation_config.mode")
    if mode not in (None, "NONE") or _setting(config, "compilation_config.cudagraph_mode") not in (None, "NONE"):
        yield "the engine compiled its model or captured graphs; whether the same kernels come out here was not tested"
    windows = [arm.window for arm in (case.incident, case.reference) if arm.window]
    everybody = [one for window in windows for one in window.requests]
    if sampled := {one.req_id for one in everybody if one.decode_cfg.get("temperature")}:
        yield f"{len(sampled)} other requests were sampled: greedy answers of equal length stand in for theirs"


def plain(decode_cfg: dict[str, Any]) -> bool:
    """Return whether a request's own tokens can be brought back: greedy, and nothing that needs a tokenizer."""
    return decode_cfg.get("temperature") == 0 and not (decode_cfg.keys() - {*PLAIN, *ASIDE})


def variables(case: Case) -> dict[str, str]:
    """Return the environment that a child is started with: from the record only names and values that are known."""
    recorded = case.engine.get("environment") or {}
    found = {
        name: str(recorded[name])
        for name, form in INHERITED.items()
        if name in recorded and re.fullmatch(form, str(recorded[name]))
    }
    threads = case.engine.get("num_threads")
    return ({"OMP_NUM_THREADS": str(threads)} if isinstance(threads, int) else {}) | found | SET


def _second_runner(engine: dict[str, Any]) -> bool:
    environment = engine.get("environment") or {}
    return str(environment.get("VLLM_USE_V2_MODEL_RUNNER", "0")) not in ("", "0")


def _experts(config: dict[str, Any]) -> bool:
    return bool(_setting(config, "parallel_config.is_moe_model"))


def _setting(config: dict[str, Any], path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
