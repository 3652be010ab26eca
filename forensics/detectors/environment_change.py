"""Engine, libraries, driver, device or arithmetic settings changed between the two runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from forensics.findings import ADMISSION, Citation, Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.ENVIRONMENT
SEEN = "real engine"

PLAIN = (
    "engine", "engine_version", "dtype", "quantization", "tp_size", "pp_size", "dp_size", "batch_invariant",
    "graph_mode", "async_scheduling", "device", "device_type", "driver", "num_threads", "cudnn_benchmark",
    "cudnn_deterministic", "kv_block_size", "attention_backend",
)  # fmt: skip
NAMES = ("instance_id", "model", "tokenizer", "served_model_name", "download_dir", "host", "port", "pid")
"""Configuration that names things and computes nothing; which weights were loaded, weights_drift tells."""
TABLES = ("versions", "environment", "precision_switches")


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare the two engine records where both say something; one run has one environment."""
    target, reference = incident.arms()
    if target.identity[:2] == reference.identity[:2] and target.identity[0]:
        return
    if target.engine is None or reference.engine is None:
        yield Gap("environment_change", "engine record", "whether engine, libraries and device were the same")
        return
    ours, theirs = _facts(target.engine), _facts(reference.engine)
    changed = sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])
    one_sided = sorted(name for name in ours.keys() ^ theirs.keys() if name.startswith("environment."))
    if changed or one_sided:
        listed = ", ".join(f"{name} {ours.get(name)!r} against {theirs.get(name)!r}" for name in changed + one_sided)
        yield Finding(
            "environment_change", RUNG, f"the environment differs: {listed}", ADMISSION,
            {name: ours.get(name) for name in changed + one_sided},
            {name: theirs.get(name) for name in changed + one_sided},
            citations=tuple(Citation(arm["source_path"], arm["line"]) for arm in (target.engine, reference.engine)),
        )  # fmt: skip


def _facts(engine: dict[str, Any]) -> dict[str, Any]:
    facts = {name: engine[name] for name in PLAIN if engine[name] is not None}
    for table in TABLES:
        facts |= {f"{table}.{name}": value for name, value in dict(engine[table] or ()).items()}
    return facts | _flat(json.loads(engine["config"] or "{}"), "config.")


def _flat(config: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif name not in NAMES:
            flat[prefix + name] = value
    return flat
