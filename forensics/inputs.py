"""What went in, in both arms: the same effective request, or how the two differ and what shaped them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forensics.findings import Finding
    from forensics.incident import Incident

SHAPING = (
    "effective_tokens", "tokens_before_truncation", "truncated", "trunc_reason", "trunc_boundary", "context_limit",
    "routing_template_version", "system_message_sha256", "shaping_events", "policy_gates", "effective_text_sha256",
    "raw_prompt_sha256", "decode_cfg_requested", "decode_cfg_applied",
)  # fmt: skip
"""Facts of a request record that say how the effective request came about."""


@dataclass(frozen=True)
class Shaped:
    """A fact about how the request was shaped that is not the same in both arms; None: not on record."""

    fact: str
    target: str | None
    reference: str | None


@dataclass(frozen=True)
class Inputs:
    """same: the two effective inputs are equal, None where a hash is missing. says: where the tokens part."""

    same: bool | None
    says: str | None
    shaped: tuple[Shaped, ...]


def inputs(incident: Incident, findings: Sequence[Finding]) -> Inputs | None:
    """Compare what went in; None without a reference. The facts are listed only where the inputs are not the same."""
    if incident.reference is None:
        return None
    ours, theirs = incident.target.request, incident.reference.request
    hashes = (ours["input_sha256"], theirs["input_sha256"])
    same = None if None in hashes else hashes[0] == hashes[1]
    drifts = [one.says for one in findings if one.code in ("effective_request_drift", "decode_config_drift")]
    pairs = [] if same else [Shaped(name, _said(ours[name]), _said(theirs[name])) for name in SHAPING]
    return Inputs(same, "; ".join(drifts) or None, tuple(one for one in pairs if one.target != one.reference))


def _said(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
