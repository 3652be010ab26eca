"""transformers' objects as contract fields: the model, the decode configuration, the plan of one launch.

What is not known is left out: an absent field is a gap on record, a guessed one is a wrong root cause.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from replay import __version__
from replay.device import Sampler
from replay.host import arithmetic_environment, library_versions, model_digests, torch_facts

if TYPE_CHECKING:
    from replay.engines.transformers_hooks import Call, Launch
    from replay.record import Recorder

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
SHAPING = (
    "repetition_penalty", "no_repeat_ngram_size", "min_length", "min_new_tokens", "bad_words_ids", "sequence_bias",
    "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "guidance_scale",
    "exponential_decay_length_penalty", "remove_invalid_values", "renormalize_logits", "prefill_chunk_size",
)  # fmt: skip
"""GenerationConfig fields that change greedy output when somebody sets them."""

HASHING_SECONDS_AT_EXIT = 10
SDPA_BACKENDS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}


def dtype_name(dtype: torch.dtype) -> str:
    """Return 'bfloat16' for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def stop_token_ids(criteria: Any) -> list[int]:
    """Return the ids that end a sequence, sorted; an id below 0, which some pass for none, is no token's."""
    found = {int(i) for one in criteria for i in getattr(one, "eos_token_id", torch.empty(0)).flatten().tolist()}
    return sorted(one for one in found if one >= 0)


def decode_config(call: Call) -> dict[str, Any]:
    """Return the output-affecting decode configuration of a loop, in simple JSON values."""
    config, limit = call.config, call.criteria.max_length
    applied: dict[str, Any] = {"temperature": 0}
    if limit is not None:
        applied["max_tokens"] = int(limit) - call.input_ids.shape[1]
    if config.do_sample:
        applied |= {name: getattr(config, name, None) for name in SAMPLING}
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "guidance_scale": 1.0}
    applied |= {
        name: value
        for name in SHAPING
        if (value := getattr(config, name, None)) not in (None, False, [], {}, neutral.get(name))
    }
    if stop := stop_token_ids(call.criteria):
        applied["stop_token_ids"] = stop
    if not config.do_sample and len(call.processors):
        applied["logits_processors"] = [type(one).__name__ for one in call.processors]
    return {name: value for name, value in applied.items() if value is not None}


def launch_plan(model: Any, launch: Launch, rule: str, use_cache: bool) -> dict[str, str]:
    """Return the plan factors of one launch that hold for all of its rows."""
    plan = {
        "batch.rows": str(launch.rows),
        "batch.mask_path": launch.mask_path,
        "attention.backend": attention_backend(model, launch),
        "dtype.weights": dtype_name(model.dtype),
        "cpu.threads": str(torch.get_num_threads()) if model.device.type == "cpu" else None,
        "token.rule": rule,
        "decode.mode": None if use_cache else "recompute",
    }
    return {name: value for name, value in plan.items() if value is not None}


def attention_backend(model: Any, launch: Launch) -> str | None:
    """Return the attention kernel family of a launch: torch's own dispatch rule, asked with this launch's shapes."""
    implementation = model.config._attn_implementation
    if implementation != "sdpa" or not launch.mask_seen:
        return "eager" if implementation == "eager" else None
    config, keys = model.config.get_text_config(), launch.cache_length + launch.width
    heads, size = config.num_attention_heads, head_size(config)
    tensor = torch.empty((1, 1, 1, size), dtype=model.dtype, device=model.device)
    query, key = (tensor.expand(launch.rows, heads, length, size) for length in (launch.width, keys))
    causal = launch.attention_mask is None and launch.width > 1
    choice = torch._fused_sdp_choice(query, key, key, attn_mask=launch.attention_mask, is_causal=causal)
    return SDPA_BACKENDS.get(choice)


def compiled_parts(model: Any) -> bool:
    """Return whether torch.compile has taken the model, a module of it, or its forward."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")
        for module in model.modules()
    )


def head_size(config: Any) -> int:
    """Return the width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def write_engine(
    recorder: Recorder, model: Any, config: dict[str, Any], observes: dict[str, list[str]]
) -> threading.Thread:
    """Write the engine record of a run; its digests follow from the thread that is returned."""
    if recorder.with_logits_sha256:
        observes = observes | {"step": [*observes["step"], "logits_sha256"]}
    text, versions = model.config.get_text_config(), library_versions()
    recorder.write(
        "engine",
        **torch_facts(),
        recorder="inference-forensics",
        recorder_version=__version__,
        engine="transformers",
        engine_version=versions.get("transformers"),
        versions=versions,
        environment=arithmetic_environment(),
        config=config | {"attn_implementation": str(model.config._attn_implementation)},
        model_id=str(model.config._name_or_path) or None,
        num_layers=getattr(text, "num_hidden_layers", None),
        num_heads=getattr(text, "num_attention_heads", None),
        num_kv_heads=getattr(text, "num_key_value_heads", None),
        head_size=head_size(text),
        hidden_size=getattr(text, "hidden_size", None),
        vocab_size=getattr(text, "vocab_size", None),
        dtype=dtype_name(model.dtype),
        quantization="none" if getattr(model, "hf_quantizer", None) is None else type(model.hf_quantizer).__name__,
        tp_size=1,
        host=os.uname().nodename,
        pid=os.getpid(),
        token_tag_key_id=recorder.tag_key_id,
        # Rows of one batch may belong to anybody.
        **Sampler(recorder).engine_fields(observes, isolation={"shared_batching": True}),
    )
    return hash_weights(recorder, Path(model.config._name_or_path or "/nowhere"))


def hash_weights(recorder: Recorder, directory: Path) -> threading.Thread:
    """Write the digests of the model when they are known; return the thread that computes them, off the serving path.

    The tokenizer is the one beside the weights: no other is known here.
    """

    def work() -> None:
        recorder.write("engine", **digests_of(directory, directory))

    thread = threading.Thread(target=work, name="forensics-weights", daemon=True)
    thread.start()
    atexit.register(thread.join, HASHING_SECONDS_AT_EXIT)  # runs before the recorder's own, which was registered first
    return thread


digests_of = functools.cache(model_digests)
"""One reading of a folder a process: a model keeps what it loaded."""
