"""What a started engine shows of settings that a plan may name: its layers and caches, not what was asked of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

ONE_BYTE = ("fp8", "int8")


def built(vllm_config: Any, model: Any) -> dict[str, str | None]:
    """Return factor → value in force; None where layers differ, or show something else than they say."""
    layers = [layer for layer in vllm_config.compilation_config.static_forward_context.values()
              if hasattr(layer, "attn_backend")]  # fmt: skip
    kernels = vllm_config.kernel_config
    return {
        "engine.attention_backend": _one(layer.attn_backend.get_name() for layer in layers),
        "engine.kv_dtype": _one(_kv_dtype(layer, vllm_config.model_config.dtype) for layer in layers),
        "engine.linear_backend": str(kernels.linear_backend),
        "engine.moe_backend": str(kernels.moe_backend),
        "engine.batch_invariant": str(_batch_invariant()).lower(),
        "graph.mode": "compiled" if any(getattr(part, "compiled", False) for part in model.modules()) else "eager",
    }


def _kv_dtype(layer: Any, dtype: Any) -> str | None:
    """Return what the layer says that it keeps, if the cache that it really has can be that."""
    said, kept = str(layer.kv_cache_dtype), layer.kv_cache.dtype
    fits = kept == dtype if said == "auto" else said == str(kept).removeprefix("torch.")
    if said.startswith(ONE_BYTE):
        fits = kept.itemsize == 1
    return said if fits else None


def _batch_invariant() -> bool:
    """Return whether vLLM put its batch-invariant kernels in place of torch's in this process; a CPU has none."""
    from vllm.model_executor.determinism import batch_invariant
    from vllm.platforms import current_platform

    return bool(getattr(batch_invariant, "_batch_invariant_MODE", False)) and not current_platform.is_cpu()


def _one(values: Iterable[str | None]) -> str | None:
    found = set(values)
    return found.pop() if len(found) == 1 else None
