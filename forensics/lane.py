"""One arm of the timeline, a row per output token: what the runtime did for it and how close the choice was."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from forensics.margin import in_ulps
from forensics.timeline import Span, Transition, spans, transitions

if TYPE_CHECKING:
    from forensics.evidence import Evidence


@dataclass(frozen=True)
class Lane:
    """Values by output position. Both arms share the axis, so that position k is the same token of the answer.

    Steps that chose no token (prefill chunks, recomputation) count towards the token they work for: its launch is
    the largest of them, its regime the last. prefill_steps: how many steps it took to choose the first token.
    transitions: changes of regime by the request's own steps, and what pushed them.
    regime_rank: the rank whose regime it is, the worst of the group; None with one rank, or where it is not known.
    """

    name: str
    token_index: tuple[int, ...]
    rows: tuple[int | None, ...]
    launch_tokens: tuple[int | None, ...]
    regime: tuple[str, ...]
    regime_extended: tuple[str, ...]
    regime_rank: tuple[int | None, ...]
    margin_ulps: tuple[float | None, ...]
    resumed: tuple[bool, ...]
    spans: tuple[Span, ...]
    spans_extended: tuple[Span, ...]
    transitions: tuple[Transition, ...]
    prefill_steps: int

    @property
    def extended_differs(self) -> bool:
        """Return whether the regime with pinned memory counted out is known at some token, and another one."""
        return any(one not in ("unknown", plain) for one, plain in zip(self.regime_extended, self.regime, strict=True))

    def rank_of(self, span: Span) -> int | None:
        """Return the rank that spoke for a span: the worst of several. None with one rank, or with several worst."""
        ranks = set(self.regime_rank[span.first : span.last + 1])
        return ranks.pop() if len(ranks) == 1 else None


def lane(name: str, arm: Evidence) -> Lane:
    """Return the lane of one arm."""
    positions: list[int] = []
    columns: dict[str, list[object]] = {
        key: []
        for key in ("rows", "launch_tokens", "regime", "regime_extended", "regime_rank", "margin_ulps", "resumed")
    }
    pending: list[dict[str, object]] = []
    prefill = 0
    ranked = _several_ranks(arm)
    for row in arm.steps.iter_rows(named=True):
        pending.append(row)
        if row["token_index"] is None:
            continue
        if not positions:
            prefill = len(pending)
        positions.append(row["token_index"])
        columns["rows"].append(_largest(pending, "batch_size"))
        columns["launch_tokens"].append(_largest(pending, "batch_tokens"))
        columns["regime"].append(row["regime"] or "unknown")
        columns["regime_extended"].append(row["regime_extended"] or "unknown")
        columns["regime_rank"].append(row.get("regime_rank") if ranked else None)
        columns["margin_ulps"].append(_ulps(row))
        columns["resumed"].append(any(step["resumed"] for step in pending))
        pending = []
    return Lane(
        name=name, token_index=tuple(positions), prefill_steps=prefill, transitions=tuple(transitions(arm.steps)),
        spans=tuple(spans(columns["regime"])), spans_extended=tuple(spans(columns["regime_extended"])),
        **{key: tuple(values) for key, values in columns.items()},  # type: ignore[arg-type]
    )  # fmt: skip


def _several_ranks(arm: Evidence) -> bool:
    """Return whether a step had more than one rank, so that naming the worst of them says something."""
    engine = arm.engine or {}
    ranks = prod(engine.get(size) or 1 for size in ("tp_size", "pp_size", "dp_size"))
    return ranks > 1 or any(row.get("regime_rank") for row in arm.steps.iter_rows(named=True))


def _largest(rows: list[dict[str, object]], name: str) -> object:
    return max((row[name] for row in rows if row[name] is not None), default=None)  # type: ignore[type-var]


def _ulps(row: dict[str, object]) -> float | None:
    margin, logits = row["margin"], row["top_logits"]
    if not isinstance(margin, float) or not isinstance(logits, list) or not logits:
        return None
    return in_ulps(margin, logits[0], str(row["logit_dtype"]))
