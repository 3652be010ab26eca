"""A map as tables for the terminal or for markdown, and what has to be said beside it."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from forensics import markup
from forensics.errors import INCONCLUSIVE
from forensics.text import markdown, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Document = dict[str, Any]
LINES = ("phase", "varied", "held", "prompt", "classes of equal bits", "carried by")
VARIED = {
    "tokens": "launch tokens",
    "rows": "request rows",
    "left_pad": "left padding",
    "neighbours": "neighbours of 1 token",
}
SPARSE = ("left_pad", "neighbours")
"""What is not halved between two values: only values that ran are named."""
IMPOSSIBLE, FAILED = "", "?"
"""A launch that cannot be: each row has a token at least. A launch that gave nothing."""


def exit_code(found: Document) -> int:
    """Return 0, or 4 where the same launch did not give the same bits again."""
    return 0 if found["repeats"] else INCONCLUSIVE


def lines(found: Document) -> list[list[str]]:
    """Return one row for each thing that was varied."""
    return [
        [
            line["phase"], VARIED[line["axis"]], line["held"], str(line["prompt"]), classes(line),
            "; ".join(_carrier(line["axis"], border, who) for border, who in line["carried"]),
        ]
        for line in found["lines"]
    ]  # fmt: skip


def classes(line: dict[str, Any]) -> str:
    """Return the values of a line, class by class: '1 | 2–128'."""
    ran = [(value, bits) for value, bits in line["points"] if bits is not None]
    if not ran:
        return "nothing ran"
    parts: dict[str, list[str]] = {}
    for bits, members in groupby(ran, key=lambda point: point[1]):
        values = [value for value, _ in members]
        named = [str(value) for value in values] if line["axis"] in SPARSE else [_range(values)]
        parts.setdefault(bits, []).extend(named)
    said = " | ".join(", ".join(names) for names in parts.values())
    return said if len(parts) > 1 else f"{said}: all the same"


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]}–{values[-1]}"


def _carrier(axis: str, border: Sequence[int], who: Sequence[str]) -> str:
    if axis == "left_pad":
        return "the explicit mask itself changes them"
    return f"{border[0]} | {border[1]}: {', '.join(who) if who else 'no GEMM alone'}"


def grid(found: Document, phase: str) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows): a letter for the class of each launch, 'A' for that of the target alone."""
    cells = {(cell["rows"], cell["tokens"]): cell for cell in found["cells"] if cell["phase"] == phase}
    letters: dict[str, str] = {}
    for place in sorted(cells):
        if (bits := cells[place]["bits"]) is not None:
            letters.setdefault(bits, _letter(len(letters)))
    widths = sorted({tokens for _, tokens in cells})
    rows = []
    for count in sorted({rows for rows, _ in cells}):
        found_cells = [cells.get((count, width)) for width in widths]
        rows.append([str(count), *(_shown(cell, letters) for cell in found_cells)])
    return [f"{phase}: rows, tokens →", *map(str, widths)], rows


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"#{number + 1}"


def _shown(cell: dict[str, Any] | None, letters: dict[str, str]) -> str:
    if cell is None:
        return IMPOSSIBLE
    return letters.get(cell["bits"], FAILED)


def document(found: Document, picture: str | None) -> str:
    """Return the map as markdown. picture: name of the drawing beside it."""
    parts = ["# Which launches give the same bits", *(markdown(note) for note in notes(found))]
    parts += [f"![classes of equal bits]({picture})"] if picture else []
    parts.append(markup.table(LINES, [[markdown(value) for value in row] for row in lines(found)]))
    for phase in ("prefill", "decode"):
        head, rows = grid(found, phase)
        parts.append(markup.table(head, rows))
    return "\n\n".join(parts) + "\n"


def notes(found: Document) -> Iterator[str]:
    """Yield what has to be said beside the figures."""
    if not found["repeats"]:
        yield "The same launch gave other bits when it ran again: nothing below can be trusted."
    yield (
        f"{found['engine']}, {found['dtype']}; one made-up request of {found['prompt_tokens']} tokens, "
        f"{found['launches']} launches, {found['seconds']:g} s. Decode is read over 4 tokens, after a prompt that "
        "ran alone."
    )
    if found["engine"] == "transformers":
        yield (
            "Launch tokens are the row count M of every projection, held by filler rows; M of lm_head is that of the "
            "rows, as in engines. Neighbours are random."
        )
    yield (
        "A border is a fact. That there is none holds for this request: another may show one, and between two measured "
        "launches of one class another class may lie."
    )
    failed = [cell for cell in found["cells"] if cell["bits"] is None]
    if failed:
        yield f"{len(failed)} launches gave nothing ({FAILED}); the first: {printable(failed[0]['why'])}"
