"""The timeline as lines of characters: both arms on one axis of output tokens, bars for rows, letters for regimes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from forensics.flip import Flip
    from forensics.lane import Lane

LETTERS = {
    "normal": ".", "queue_degraded": "q", "memory_pressured": "m", "paging": "P", "memory_evaporation": "E",
    "isolation_strict": "I", "unknown": "?",
}  # fmt: skip


@dataclass(frozen=True)
class Glyphs:
    """The characters that an output can show."""

    bars: str
    here: str
    rail: str
    arrow: str
    dot: str


UNICODE = Glyphs("▁▂▃▄▅▆▇█", "▲", "│", "→", "·")
ASCII = Glyphs("_.-=+*%#", "^", "|", "->", "-")


def glyphs(encoding: str | None, terminal: str) -> Glyphs:
    """Return the characters for an output: plain ASCII where its encoding has no others, or the terminal is dumb."""
    try:
        "".join((UNICODE.bars, UNICODE.here, UNICODE.rail, UNICODE.arrow)).encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return ASCII if terminal == "dumb" else UNICODE


def bars(lanes: Sequence[Lane], flip: Flip | None, width: int, shown: Glyphs) -> Iterator[tuple[str, str]]:
    """Yield (name, line), at most `width` columns each. Letters stand only where a regime is not normal throughout."""
    last = max((one.token_index[-1] + 1 for one in lanes if one.token_index), default=0)
    if not last:
        yield "timeline", "no step that chose a token is on record"
        return
    per = -(-last // width)
    top = max((rows or 0 for one in lanes for rows in one.rows), default=1) or 1
    extended = any(one.extended_differs for one in lanes)
    states = {state for one in lanes for state in one.regime + (one.regime_extended if extended else ())}
    for one in lanes:
        yield one.name, _bars(one, per, top, shown.bars, last)
        if states != {"normal"}:
            yield "regime", _letters(one, one.regime, per, last)
        if extended:
            yield "extended", _letters(one, one.regime_extended, per, last)
        if any(one.resumed):
            yield "preempted", "".join(shown.here if any(cell) else " " for cell in _cells(one, one.resumed, per, last))
    if flip is not None:
        label, column = f"flip at {flip.token_index}", flip.token_index // per
        right = column + len(label) + 2 > width
        yield "", f"{label} {shown.here}".rjust(column + 1) if right else f"{'':{column}}{shown.here} {label}"
    each = "one token a column" if per == 1 else f"{per} tokens a column, the largest launch of them"
    legend = ", ".join(f"{LETTERS.get(state, '?')} {state}" for state in sorted(states))
    rows = "1 row" if top == 1 else f"1 to {top} rows"
    regimes = "regime normal throughout" if states == {"normal"} else f"regimes: {legend}"
    worst = sorted({rank for one in lanes for rank in one.regime_rank if rank is not None})
    regimes += f"; worst rank: {', '.join(map(str, worst))}" if worst else ""
    yield "", f"{each}; bars: {rows} a launch; {regimes}"


def _cells(one: Lane, values: Sequence[object], per: int, last: int) -> list[list[object]]:
    """Return the values of each column, by output position: a position without a record leaves its cell empty."""
    cells: list[list[object]] = [[] for _ in range(-(-last // per))]
    for position, value in zip(one.token_index, values, strict=True):
        cells[position // per].append(value)
    return cells


def _bars(one: Lane, per: int, top: int, steps: str, last: int) -> str:
    line = ""
    for cell in _cells(one, one.rows, per, last):
        rows = [value for value in cell if isinstance(value, int)]
        line += steps[round((max(rows) - 1) * (len(steps) - 1) / max(top - 1, 1))] if rows else " "
    return line


def _letters(one: Lane, states: Sequence[str], per: int, last: int) -> str:
    """Return a letter a column; of several states the first that is not normal."""
    picked = [
        next((state for state in cell if state != "normal"), cell[0] if cell else None)
        for cell in _cells(one, states, per, last)
    ]
    return "".join(" " if state is None else LETTERS.get(str(state), "?") for state in picked)
