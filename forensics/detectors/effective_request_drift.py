"""The two runs did not see the same tokens, though the same thing was asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from forensics.findings import ADMISSION, Finding, Gap, Rung
from forensics.token_difference import token_difference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.WORKLOAD
SEEN = "real engine"
SHADES = {
    "truncation": (
        "truncated", "trunc_reason", "trunc_side", "trunc_boundary", "tokens_before_truncation", "context_limit",
    ),
    "template": ("routing_template_version", "chat_template_sha256", "system_message_sha256"),
    "tools": ("tool_schemas_sha256",),
    "policy": ("policy_gates",),
    "shaping": ("shaping_events",),
}  # fmt: skip
"""What can have changed the tokens → the request fields that tell of it."""
HAPPENINGS = ("truncated", "trunc_reason", "trunc_side", "trunc_boundary", "policy_gates", "shaping_events")
"""Fields that are written where it happened: absent in one arm is a difference."""
CACHED = ("prefix_cache_used", "prefix_cache_key")


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare the effective token ids; where they are on record, say which were removed or inserted, and where.

    The shades whose shaping facts differ between the arms are named: truncation, template, tools, policy, shaping. Two
    follow from hashes: the text was *rewritten* (same prompt, template and tools, another effective text), or the same
    text, not cut, became other tokens (a prefix put together again from a cache, another tokenizer). Tool schemas over
    the context limit are said too.

    It stands at the start of every chain that it is part of; its competitors there are other weights, another
    environment and another launch shape.
    """
    target, reference = incident.arms()
    ours, theirs = (arm.request["effective_token_ids_sha256"] for arm in (target, reference))
    if ours is None or theirs is None:
        yield Gap("effective_request_drift", "effective_token_ids_sha256", "whether both runs saw the same tokens")
        return
    if ours == theirs:
        return
    counts = [arm.request["effective_tokens"] for arm in (target, reference)]
    says = f"the model saw other tokens ({counts[0]} against {counts[1]})"
    one, other = (arm.request["effective_token_ids"] for arm in (target, reference))
    difference = token_difference(one, other) if one and other else None
    if difference is not None:
        says += f", different from input position {difference.prefix}: {difference.says()}, compared with the reference"
    shades = [f"{shade} ({said})" for shade in SHADES if (said := _said(target.request, reference.request, shade))]
    shades += _derived(target.request, reference.request)
    shades += [one for arm in (target, reference) if (one := _tools_over_limit(arm.name, arm.request))]
    says += "; " + ("; ".join(shades) if shades else "no shaping fact on record says why")
    yield Finding(
        "effective_request_drift", RUNG, says, ADMISSION, ours, theirs, citations=target.cite() + reference.cite()
    )


def _said(ours: dict[str, Any], theirs: dict[str, Any], shade: str) -> str:
    """Return the facts of one shade that differ; what one arm alone states counts only if it is a happening."""
    return ", ".join(
        f"{name} {_value(ours[name])} against {_value(theirs[name])}"
        for name in SHADES[shade]
        if (ours[name] or None) != (theirs[name] or None)
        and (name in HAPPENINGS or None not in (ours[name], theirs[name]))
    )


def _derived(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    """Yield the shades that follow from what is the same and what is not."""

    def same(name: str) -> bool | None:
        return None if None in (ours[name], theirs[name]) else bool(ours[name] == theirs[name])

    made = [same(name) for shade in ("template", "tools") for name in SHADES[shade]]
    if same("raw_prompt_sha256") and same("effective_text_sha256") is False and False not in made:
        yield "rewrite (the same prompt, another text: effective_text_sha256)"
    if same("effective_text_sha256") and not (ours["truncated"] or theirs["truncated"]):
        cached = ", ".join(f"{name} {_value(ours[name])} against {_value(theirs[name])}" for name in CACHED)
        yield f"reconstruction (the same text became other tokens; {cached})"


def _tools_over_limit(name: str, request: dict[str, Any]) -> str | None:
    """Return in words that a request with tool schemas did not fit, None where it did or that is not on record."""
    before, limit = request["tokens_before_truncation"], request["context_limit"]
    if request["tool_schemas_sha256"] is None or None in (before, limit) or before <= limit:
        return None
    return f"tools over the limit (with its tool schemas {name} had {before} tokens, the context limit was {limit})"


def _value(value: Any) -> str:
    if value is None:
        return "not on record"
    return value if isinstance(value, str) else json.dumps(value)
