"""The records that findings cite, with the fields that matter: what a reader would otherwise look up in the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from forensics.evidence import Evidence
    from forensics.findings import Citation

KEYS = {
    "request": ("req_id", "effective_tokens", "effective_token_ids_sha256", "decode_cfg_applied", "truncated",
                "trunc_reason", "output_tokens", "finish_reason"),
    "step": ("req_id", "step", "engine_step", "token_index", "token_id", "token_tag", "num_scheduled_tokens",
             "num_computed_tokens", "batch_size", "batch_tokens", "padded_tokens", "graph_mode", "margin",
             "logit_dtype", "top_logits", "resumed", "regime"),
    "engine": ("engine", "engine_version", "model_id", "weights_sha256", "dtype", "device"),
}  # fmt: skip
"""Kind of record → its key fields; those of a step's batch and the derived regime stand with the step."""
SHORT = 12
"""Characters of a hash that are enough to tell two apart by eye."""


@dataclass(frozen=True)
class Exhibit:
    """One cited record: where it stands, of which kind it is, its key fields as text."""

    citation: Citation
    kind: str
    fields: dict[str, str]


def exhibits(arms: Iterable[Evidence], citations: Iterable[Citation]) -> tuple[Exhibit, ...]:
    """Return the cited records in the order of citation, each once. A record that no arm holds is left out."""
    known: dict[tuple[str, int], tuple[str, dict[str, Any]]] = {}
    for arm in arms:
        rows = [("step", row) for row in arm.steps.iter_rows(named=True)]
        rows += [("request", arm.request)] + ([("engine", arm.engine)] if arm.engine else [])
        known |= {(row["source_path"], row["line"]): (kind, row) for kind, row in rows}
    found = []
    for citation in dict.fromkeys(citations):
        if (citation.path, citation.line) in known:
            kind, row = known[citation.path, citation.line]
            found.append(
                Exhibit(citation, kind, {name: _say(name, row[name]) for name in KEYS[kind] if _said(row, name)})
            )
    return tuple(found)


def _said(row: dict[str, Any], name: str) -> bool:
    return row.get(name) is not None


def _say(name: str, value: Any) -> str:
    if name.endswith("sha256"):
        return str(value)[:SHORT]
    if isinstance(value, list):
        return ", ".join(f"{one:g}" for one in value[:2])
    return f"{value:g}" if isinstance(value, float) else str(value)
