"""The map as a picture: a square for each launch, its class as a letter and a colour. Uses altair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.errors import BAD_INPUT, ForensicsError
from forensics.plan_map.report import grid

if TYPE_CHECKING:
    from pathlib import Path

PAPER, INK = "#ffffff", "#1a1a1a"
COLOURS = ("#dce6f2", "#f3dfa2", "#e29a8c", "#c3a1d6", "#a8d5ba", "#eab676", "#9fbfe8", "#d9d9d9")
SQUARE = 34
SUFFIXES = (".svg", ".png")


def prepare(path: Path) -> None:
    """Make the folder of a picture before a map takes minutes. Raises ForensicsError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise _cannot_write(path, fault) from None


def _cannot_write(path: Path, fault: OSError) -> ForensicsError:
    return ForensicsError(f"{path}: cannot write: {fault.strerror}", BAD_INPUT, "choose another -o")


def draw(found: dict[str, Any], path: Path) -> None:
    """Write the picture as SVG or PNG, as the name ends."""
    import altair

    panels = [_panel(altair, found, phase) for phase in ("prefill", "decode")]
    chart = altair.hconcat(*panels, spacing=30).properties(
        title="Launches that give one request's logits the same bits", background=PAPER, padding=12
    )
    chart = chart.resolve_scale(color="independent").configure_view(strokeWidth=0)
    chart = chart.configure_axis(labelColor=INK, titleColor=INK, grid=False).configure_title(color=INK, anchor="start")
    try:
        chart.save(str(path))
    except OSError as fault:
        raise _cannot_write(path, fault) from None


def _panel(altair: Any, found: dict[str, Any], phase: str) -> Any:
    (_, *widths), rows = grid(found, phase)
    cells = [
        {"rows": int(count), "tokens": int(width), "class": letter}
        for count, *letters in rows
        for width, letter in zip(widths, letters, strict=True)
        if letter
    ]
    names = sorted({str(cell["class"]) for cell in cells})
    colours = altair.Scale(domain=names, range=[COLOURS[place % len(COLOURS)] for place in range(len(names))])
    base = altair.Chart(altair.Data(values=cells)).encode(
        x=altair.X("tokens:O", title="launch tokens", axis=altair.Axis(labelAngle=0)),
        y=altair.Y("rows:O", title="request rows"),
    )
    squares = base.mark_rect(stroke=PAPER).encode(color=altair.Color("class:N", scale=colours, legend=None))
    size = {"width": SQUARE * len(widths), "height": SQUARE * len(rows)}
    return (squares + base.mark_text(color=INK).encode(text="class:N")).properties(title=phase, **size)
