"""What of the execution contract is on record for one request, and what each missing field stops us from claiming."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from forensics.evidence import Evidence

FIELDS: tuple[tuple[str, str, str], ...] = (
    ("request", "effective_token_ids_sha256", "that two runs saw the same input: no reference can be found"),
    ("request", "decode_cfg_applied", "that two runs decoded under the same configuration"),
    ("request", "output_token_ids_sha256", "whether two outputs differ"),
    ("step", "token_id|token_tag", "at which token two outputs part"),
    ("step", "top_logits", "how close the decision was, and whether the logits had drifted"),
    ("batch", "batch_tokens", "in which launch shape the kernels ran"),
    ("step", "engine_step", "who shared the launches"),
    ("engine", "weights_sha256", "that two runs loaded the same weights"),
    ("step", "logit_dtype", "the margin in ulps: rounding cannot be told from a fault"),
    ("step", "num_computed_tokens", "prefix-cache hits, chunk borders and recomputation"),
    ("request", "effective_token_ids", "replay: the effective request cannot be executed again"),
    ("step", "resumed", "whether the request was preempted and recomputed"),
    ("engine", "versions", "that both runs used the same libraries"),
    ("engine", "config", "under which configuration the engine chose its plans"),
    ("engine", "device", "that both runs used the same hardware"),
    ("engine", "environment", "that both runs had the same arithmetic settings"),
    ("batch", "graph_mode", "whether a captured graph was replayed"),
    ("batch", "padded_tokens", "for which padded size the kernels were chosen"),
    ("batch", "headroom_mb|vram_free_mb", "the memory regime"),
    ("batch", "paging_on", "the paging regime"),
    ("batch", "isolation_mode", "the isolation regime, unless the engine record states the posture"),
    ("step", "queue_ms", "the queue regime"),
    ("request", "token_rule", "whether ties were broken the same way"),
    ("request", "raw_prompt_sha256", "that the same thing was asked when the effective inputs differ"),
    ("batch", "algo_id|kernel_variant", "which kernel ran: shapes stand in for it"),
    ("batch", "precision_path", "which precision path ran"),
    ("batch", "step_ms", "stalls and stragglers on the host"),
    ("batch", "gpu_ms", "time on the device"),
)
"""(kind, field or alternatives, what its absence stops), the most valuable first."""


@dataclass(frozen=True)
class Field:
    """One field of the contract as it stands for one request. share: of the rows that could carry it, how many do."""

    kind: str
    name: str
    share: float
    stops: str

    @property
    def full_name(self) -> str:
        """Return the name with its kind, as `contract` lists it."""
        return f"{self.kind}.{self.name}"

    @property
    def status(self) -> str:
        """Return 'on record', 'in part' or 'missing'."""
        return "on record" if self.share == 1 else "in part" if self.share > 0 else "missing"


def coverage(evidence: Evidence) -> list[Field]:
    """Return every field that a claim rests on, in order of value."""
    return [Field(kind, name, _share(evidence, kind, name), stops) for kind, name, stops in FIELDS]


def record_first(fields: list[Field], count: int = 3) -> list[Field]:
    """Return the missing fields that would help most."""
    return [field for field in fields if field.share == 0][:count]


def _share(evidence: Evidence, kind: str, name: str) -> float:
    if kind in ("request", "engine"):
        row = evidence.request if kind == "request" else evidence.engine or {}
        return float(any(row.get(one) is not None for one in name.split("|")))
    steps = evidence.steps
    if name.startswith(("token_id", "top_logits", "logit_dtype")):
        steps = steps.drop_nulls("token_index")  # prefill chunks choose no token
    if name == "queue_ms":
        steps = steps.head(1)  # written in the first step only
    if steps.is_empty():
        return 0.0
    if name == "resumed" and evidence.observes(kind, name):
        return 1.0  # written only where it happened: absent means no
    if name == "isolation_mode" and _states_posture(evidence.engine):
        return 1.0
    present = steps.select(pl.any_horizontal(pl.col(one).is_not_null() for one in name.split("|")).mean())
    return float(present.item())


def _states_posture(engine: dict[str, Any] | None) -> bool:
    facts = json.loads((engine or {}).get("isolation") or "{}")
    return "shared_batching" in facts or "cross_tenant_batching" in facts
