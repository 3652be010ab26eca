"""The timeline as a picture, SVG and PNG: both arms on one axis of output tokens. The only user of altair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.text import printable

if TYPE_CHECKING:
    from pathlib import Path

    from forensics.explanation import Explanation

REGIME_COLOURS = {
    "normal": "#dfe8df", "queue_degraded": "#f3e3b3", "memory_pressured": "#f5c99b", "paging": "#eea29a",
    "memory_evaporation": "#d5a6e0", "isolation_strict": "#a9c4eb", "unknown": "#e5e5e5",
}  # fmt: skip
ARM_COLOURS = {"target": "#b3261e", "reference": "#1f5fa8"}
WIDTH = 720
ULP_CEILING = 64.0
"""Margins beyond this are drawn at the ceiling: what matters is near zero."""


def draw(explanation: Explanation, stem: Path) -> list[Path]:
    """Write STEM.svg and STEM.png and return them; [] when no step is on record and there is nothing to draw."""
    import altair

    rows = _rows(explanation)
    if not rows:
        return []
    axis = altair.Scale(domain=[-0.5, max(row["token"] for row in rows) + 0.5], nice=False)
    names = ["request rows", "launch tokens", "margin, ulp"]
    known = [name for name in names if any(row[name] is not None for row in rows)]
    top, lines = _regimes(altair, explanation, axis), [_lines(altair, rows, name, axis) for name in known]
    if explanation.flip is not None:
        at = explanation.flip.token_index
        top = top + _rule(altair, at, axis) + _label(altair, at, axis)
        lines = [panel + _rule(altair, at, axis) for panel in lines]
    body = altair.vconcat(*lines, spacing=8).resolve_scale(color="shared", strokeDash="shared")
    title = f"Request {printable(explanation.target.req_id, 60)}: what ran, token by token"
    chart = altair.vconcat(top, body, title=title).resolve_scale(color="independent")
    chart = chart.configure_view(strokeWidth=0).configure_axis(grid=False)
    written = [stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")]
    chart.save(str(written[0]))
    chart.save(str(written[1]), scale_factor=2)
    return written


def _rows(explanation: Explanation) -> list[dict[str, Any]]:
    return [
        {
            "arm": lane.name, "token": position, "request rows": rows, "launch tokens": tokens,
            "margin, ulp": None if ulps is None else min(ulps, ULP_CEILING),
        }
        for lane in explanation.lanes
        for position, rows, tokens, ulps in zip(
            lane.token_index, lane.rows, lane.launch_tokens, lane.margin_ulps, strict=True
        )
    ]  # fmt: skip


def _regimes(altair: Any, explanation: Explanation, axis: Any) -> Any:
    spans: list[dict[str, Any]] = [
        {
            "arm": lane.name, "regime": span.state,
            "from": lane.token_index[span.first] - 0.5, "to": lane.token_index[span.last] + 0.5,
        }
        for lane in explanation.lanes
        for span in lane.spans
    ]  # fmt: skip
    states = sorted({span["regime"] for span in spans})
    colours = altair.Scale(domain=states, range=[REGIME_COLOURS.get(state, "#e5e5e5") for state in states])
    return (
        altair.Chart(altair.Data(values=spans))
        .mark_bar(height=16)
        .encode(
            x=altair.X("from:Q", title=None, axis=None, scale=axis), x2="to:Q",
            y=altair.Y("arm:N", title=None, sort=["target", "reference"]),
            color=altair.Color("regime:N", scale=colours, title="regime"),
        )
        .properties(width=WIDTH, height=44)
    )  # fmt: skip


def _lines(altair: Any, rows: list[dict[str, Any]], name: str, axis: Any) -> Any:
    colours = altair.Scale(domain=list(ARM_COLOURS), range=list(ARM_COLOURS.values()))
    is_margin = name == "margin, ulp"
    symlog = altair.Scale(type="symlog") if is_margin else altair.Undefined
    title = f"{name} (cut at {ULP_CEILING:.0f})" if is_margin else name
    ticks = altair.Axis(tickMinStep=1, format="d")
    return (
        altair.Chart(altair.Data(values=rows))
        .mark_line(interpolate="step", strokeWidth=1.5, point=altair.OverlayMarkDef(size=12))
        .encode(
            x=altair.X("token:Q", title="output token", scale=axis, axis=ticks),
            y=altair.Y(f"{name}:Q", title=title, scale=symlog),
            color=altair.Color("arm:N", scale=colours, title="arm"),
            strokeDash=altair.StrokeDash("arm:N", sort=["target", "reference"], legend=None),
        )
        .properties(width=WIDTH, height=110)
    )


def _rule(altair: Any, position: int, axis: Any) -> Any:
    data = altair.Data(values=[{"at": position}])
    return altair.Chart(data).mark_rule(color="black", strokeDash=[4, 3]).encode(x=altair.X("at:Q", scale=axis))


def _label(altair: Any, position: int, axis: Any) -> Any:
    data = altair.Data(values=[{"at": position, "label": f"flip at {position}"}])
    text = altair.Chart(data).mark_text(baseline="bottom", dy=-3)
    return text.encode(x=altair.X("at:Q", scale=axis), y=altair.value(0), text="label:N")
