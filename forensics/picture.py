"""The timeline as a picture, SVG and PNG: both arms on one axis of output tokens. The only user of altair.

Arms differ by dash and shape as well as by colour, regimes by their name, so that print in grey tells the same. The
panel is opaque: dark text stays dark on white in a dark page too.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from forensics.text import printable

if TYPE_CHECKING:
    from pathlib import Path

    from forensics.explanation import Explanation
    from forensics.flip import Flip

PAPER, INK = "#ffffff", "#1a1a1a"
REGIME_COLOURS = {
    "normal": "#eef2ee", "queue_degraded": "#f3dfa2", "memory_pressured": "#eab676", "paging": "#e29a8c",
    "memory_evaporation": "#c3a1d6", "isolation_strict": "#9fbfe8", "unknown": "#d9d9d9",
}  # fmt: skip
SIGNS = {"flip": "diamond", "preempted": "triangle-down"}
ARM_COLOURS = {"target": "#8c1d18", "reference": "#1769c2"}
WIDTH, LANE = 720, 40
"""Pixels: width of a panel, height of a lane of regimes."""
WHOLE, AROUND = 240, 60
"""Longer runs than WHOLE output tokens are drawn from AROUND before the flip to AROUND after it, below an overview."""
COLUMNS = 360
"""Most columns of an overview; each shows the largest launch of its tokens."""
POINTS = 100
"""Most points of a panel; they only tell the arms apart."""
ULP_TICKS = [0, 1, 2, 4, 8, 16, 32, 64]
NEAR_TIE = 4
LETTER_PX = 6
"""Width of a letter; a regime's name stands in its span only where it fits."""


def draw(explanation: Explanation, stem: Path) -> list[Path]:
    """Write STEM.svg and STEM.png and return them; [] when no step is on record and there is nothing to draw."""
    import altair

    rows = _rows(explanation)
    if not rows:
        return []
    last = max(row["token"] for row in rows)
    window = _window(last, explanation.flip.token_index if explanation.flip else None)
    chart = altair.vconcat(*_panels(altair, explanation, rows, window, last), spacing=14)
    title = f"Request {printable(explanation.target.req_id, 60)}: what ran, token by token"
    chart = chart.properties(title=title, background=PAPER, padding=12).resolve_scale(
        color="independent", strokeDash="independent", shape="independent"
    )
    chart = (
        chart.configure_mark(aria=False)
        .configure_view(strokeWidth=0)
        .configure_axis(grid=False, labelColor=INK, titleColor=INK)
    )
    chart = chart.configure_title(color=INK, anchor="start").configure_legend(labelColor=INK, titleColor=INK)
    written = [stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")]
    chart.save(str(written[0]))
    chart.save(str(written[1]), scale_factor=1.5)
    return written


def _window(last: int, flip: int | None) -> tuple[int, int]:
    """Return the first and last output token that are drawn one by one."""
    if last < WHOLE:
        return 0, last
    centre = 0 if flip is None else flip
    first = max(0, min(centre - AROUND, last - 2 * AROUND))
    return first, first + 2 * AROUND


def _rows(explanation: Explanation) -> list[dict[str, Any]]:
    return [
        {
            "arm": lane.name, "token": position, "rows": rows, "tokens": tokens, "preempted": resumed,
            "ulp": None if ulps is None else min(ulps, ULP_TICKS[-1]),
        }
        for lane in explanation.lanes
        for position, rows, tokens, ulps, resumed in zip(
            lane.token_index, lane.rows, lane.launch_tokens, lane.margin_ulps, lane.resumed, strict=True
        )
    ]  # fmt: skip


def _panels(
    altair: Any, explanation: Explanation, rows: list[dict[str, Any]], window: tuple[int, int], last: int
) -> list[Any]:
    """Return the panels from top to bottom: overview of a long run, regimes, and a line for each quantity on record."""
    near = [row for row in rows if window[0] <= row["token"] <= window[1]]
    axis = altair.Scale(domain=[window[0] - 0.5, window[1] + 0.5], nice=False)
    panels = [_overview(altair, rows, window, last, explanation.flip)] if window != (0, last) else []
    panels.append(_regimes(altair, explanation, near, window, axis))
    titles = {"rows": "rows a launch", "tokens": "tokens a launch", "ulp": f"margin, ulp (cut at {ULP_TICKS[-1]})"}
    known = [name for name in titles if any(row[name] is not None for row in near)]
    lines = [_line(altair, near, name, titles[name], axis, bottom=name == known[-1]) for name in known]
    if explanation.flip is not None:
        lines = [line + _rule(altair, altair.X("at:Q", scale=axis), explanation.flip.token_index) for line in lines]
    shared = altair.vconcat(*lines, spacing=6).resolve_scale(color="shared", strokeDash="shared", shape="shared")
    return [*panels, shared] if lines else panels


def _overview(altair: Any, rows: list[dict[str, Any]], window: tuple[int, int], last: int, flip: Flip | None) -> Any:
    """Draw the whole run, some tokens a column, and where the panels below look."""
    per = -(-(last + 1) // COLUMNS)

    def place(row: dict[str, Any]) -> tuple[str, int]:
        return row["arm"], row["token"] // per

    columns = [
        {"arm": arm, "from": column * per, "rows": max((row["rows"] or 0 for row in members), default=0)}
        for (arm, column), members in groupby(sorted(rows, key=place), key=place)
    ]
    whole = altair.Scale(domain=[0, last], nice=False)
    seen = altair.Chart(altair.Data(values=[{"from": window[0], "to": window[1]}]))
    shade = seen.mark_rect(color="#dddddd", stroke=INK).encode(x=altair.X("from:Q", scale=whole), x2="to:Q")
    line = altair.Chart(altair.Data(values=columns)).mark_line(interpolate="step-after", strokeWidth=1)
    line = line.encode(
        x=altair.X("from:Q", title=f"whole run: output token, {per} a column; framed: below", scale=whole),
        y=altair.Y("rows:Q", title="rows", axis=altair.Axis(tickCount=3, tickMinStep=1)),
        color=altair.Color("arm:N", scale=_arms(altair, list(ARM_COLOURS.values())), legend=None),
        strokeDash=altair.StrokeDash("arm:N", scale=_arms(altair, [[1, 0], [4, 2]]), legend=None),
    )
    marked = (
        shade + line if flip is None else shade + line + _rule(altair, altair.X("at:Q", scale=whole), flip.token_index)
    )
    return marked.properties(width=WIDTH, height=50)


def _arms(altair: Any, values: list[Any]) -> Any:
    return altair.Scale(domain=list(ARM_COLOURS), range=values)


def _regimes(
    altair: Any, explanation: Explanation, near: list[dict[str, Any]], window: tuple[int, int], axis: Any
) -> Any:
    """Draw a lane of regime spans for each arm, named where the name fits; flip and preemptions marked in the lane."""
    pixels = WIDTH / (window[1] - window[0] + 1)
    spans = []
    for lane in explanation.lanes:
        kinds = [(lane.name, lane.spans)] + (
            [(f"{lane.name}, extended", lane.spans_extended)] if lane.extended_differs else []
        )
        for name, found in kinds:
            for span in found:
                first, end = max(lane.token_index[span.first], window[0]), min(lane.token_index[span.last], window[1])
                if first <= end:
                    fits = (end - first + 1) * pixels > LETTER_PX * len(span.state)
                    spans.append(
                        {"lane": name, "regime": span.state, "from": first - 0.5, "to": end + 0.5,
                         "said": span.state if fits else ""}
                    )  # fmt: skip
    states = [state for state in REGIME_COLOURS if any(span["regime"] == state for span in spans)]
    colours = altair.Scale(domain=states, range=[REGIME_COLOURS[state] for state in states])
    lanes = altair.Y("lane:N", title=None, sort=list(dict.fromkeys(span["lane"] for span in spans)))
    drawn = altair.Chart(altair.Data(values=spans))
    bars = drawn.mark_bar(height=16, stroke=INK, strokeWidth=0.5).encode(
        x=altair.X("from:Q", title=None, axis=None, scale=axis), x2="to:Q", y=lanes,
        color=altair.Color("regime:N", scale=colours, title="regime"),
    )  # fmt: skip
    names = drawn.mark_text(color=INK, fontSize=10, align="left", dx=4)
    names = names.encode(x=altair.X("from:Q", scale=axis), y=lanes, text="said:N")
    panel = bars + names
    marks = [
        {"lane": row["arm"], "at": row["token"], "sign": "preempted", "said": ""} for row in near if row["preempted"]
    ]
    if explanation.flip is not None:
        at = explanation.flip.token_index
        panel = panel + _rule(altair, altair.X("at:Q", scale=axis), at)
        tokens = {"target": explanation.flip.target_token, "reference": explanation.flip.reference_token}
        marks += [
            {"lane": lane.name, "at": at, "sign": "flip", "said": f"flip at {at}: {printable(tokens[lane.name], 24)}"}
            for lane in explanation.lanes
        ]
    if marks:
        above = altair.Chart(altair.Data(values=marks)).encode(x=altair.X("at:Q", scale=axis), y=lanes)
        signs = {name: shape for name, shape in SIGNS.items() if any(mark["sign"] == name for mark in marks)}
        signs = altair.Scale(domain=list(signs), range=list(signs.values()))
        shape = altair.Shape("sign:N", scale=signs, title="in a lane")
        panel = panel + above.mark_point(filled=True, color=INK, size=40, opacity=1, yOffset=-13).encode(shape=shape)
        panel = panel + above.mark_text(color=INK, fontSize=11, align="left", dx=7, dy=-13).encode(text="said:N")
    return panel.properties(width=WIDTH, height=LANE * len({span["lane"] for span in spans}))


def _line(altair: Any, rows: list[dict[str, Any]], name: str, title: str, axis: Any, *, bottom: bool) -> Any:
    """Draw one quantity of both arms. Launch tokens and margins stand on a log scale: what matters is small."""
    log = altair.Scale(type="symlog", constant=1)
    ticks = (
        altair.Axis(values=ULP_TICKS, format="d", labelOverlap=False)
        if name == "ulp"
        else altair.Axis(tickCount=4, tickMinStep=1, format="d")
    )
    tokens = altair.Axis(tickMinStep=1, format="d", labels=bottom)
    base = altair.Chart(altair.Data(values=[row for row in rows if row[name] is not None])).encode(
        x=altair.X("token:Q", title="output token" if bottom else None, scale=axis, axis=tokens),
        y=altair.Y(f"{name}:Q", title=title, scale=altair.Undefined if name == "rows" else log, axis=ticks),
        color=altair.Color("arm:N", scale=_arms(altair, list(ARM_COLOURS.values())), title="arm"),
    )  # fmt: skip
    dash = altair.StrokeDash("arm:N", scale=_arms(altair, [[1, 0], [4, 2]]), title="arm")
    shape = altair.Shape("arm:N", scale=_arms(altair, ["circle", "square"]), title="arm")
    chart = base.mark_line(interpolate="step", strokeWidth=1.5).encode(strokeDash=dash)
    every = -(-len(rows) // POINTS)
    points = base.transform_filter(f"datum.token % {every} == 0").mark_point(size=22, strokeWidth=1.2)
    chart = chart + points.encode(shape=shape)
    if name == "ulp":
        height = altair.Y("at:Q", title=title, scale=log, axis=ticks)
        chart = chart + _rule(altair, height, NEAR_TIE, "near tie below") + _rule(altair, height, 0, "exact tie")
    return chart.properties(width=WIDTH, height=90)


def _rule(altair: Any, place: Any, at: int, said: str = "") -> Any:
    """Draw a dashed line across a panel at a place on x or y, named beyond its right end if it has a name."""
    data = altair.Chart(altair.Data(values=[{"at": at, "said": said}]))
    rule = data.mark_rule(color=INK, strokeDash=[3, 3], strokeWidth=1).encode(place)
    if not said:
        return rule
    text = data.mark_text(color=INK, fontSize=10, align="left", dx=4)
    return rule + text.encode(place, x=altair.value(WIDTH), text="said:N")
