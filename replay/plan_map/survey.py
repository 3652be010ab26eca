"""Where the bits of one fixed request's logits change: request rows and launch tokens varied independently.

Standard library only. `survey` decides what to try and knows no engine; a probe runs one cell and says its bits.
A class is a set of cells with the same bits. Between two measured cells of one class another may hide.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from replay.plan_map.cells import PHASES, ROLES, Cell, Line, MapError, Survey, fewest, least_tokens
from replay.trial import USAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from replay.plan_map.cells import Probe, Reading

PADS: Final = (0, 1, 2, 4, 8, 16, 32)
MOST_BORDERS: Final = 4
"""Borders of a line that are taken apart by role; there may be more."""


def ladder(least: int, most: int) -> list[int]:
    """Return least, most, and the powers of two between."""
    between = [1 << power for power in range(most.bit_length()) if least < 1 << power < most]
    return sorted({least, *between, most})


def survey(probe: Probe, most_rows: int, most_tokens: int, say: Callable[[str], None]) -> Survey:
    """Measure the grid, the two lines through it and, where the engine can, padding. Raises MapError."""
    if most_rows < fewest(probe):
        raise MapError("this engine needs a neighbour to vary the launch: raise --rows to 2 or more", USAGE)
    if most_tokens < probe.prompt + most_rows - 1:
        raise MapError(
            f"{most_rows} rows and a prompt of {probe.prompt} tokens need launches of "
            f"{probe.prompt + most_rows - 1} tokens: raise --tokens or lower --rows", USAGE,
        )  # fmt: skip
    found = Survey(probe.prompt)
    read = functools.cache(probe.read)
    first = [Cell(phase, 1, probe.prompt if phase == "prefill" else 1) for phase in PHASES]
    for cell in first:
        if (reading := read(cell)).bits is None:
            raise MapError(f"the target alone gave no logits in {cell.phase}: {reading.why}")
    for rows in ladder(1, most_rows):
        say(f"{rows} row{'s' * (rows > 1)}: launches of up to {most_tokens} tokens")
        for tokens, phase in itertools.product(sorted({*ladder(1, most_tokens), probe.prompt}), PHASES):
            least = least_tokens(phase, rows, probe.prompt)
            if tokens == least or (tokens > least and rows >= fewest(probe)):
                cell = Cell(phase, rows, tokens)
                found.cells.append((cell, read(cell)))
    for phase in PHASES:
        say(f"{phase}: borders")
        found.lines += [
            token_line(read, phase, probe, most_tokens),
            _row_line(read, phase, probe, most_rows, most_tokens),
        ]
        other = _pad_line(read, phase, probe, most_tokens) if probe.forces_roles else _company_line(read, phase, probe)
        found.lines.append(other)
    found.repeats = all(probe.read(cell, repeat=1).bits == read(cell).bits for cell in first)
    return found


def token_line(read: Callable[[Cell], Reading], phase: str, probe: Probe, most: int) -> Line:
    """Vary the launch's tokens, with as few rows as can be."""
    rows = fewest(probe)
    least = least_tokens(phase, rows, probe.prompt)
    held = f"{rows} row{'s' * (rows > 1)}"

    def cell(tokens: int) -> Cell:
        return Cell(phase, rows, tokens)

    line = _line(read, cell, phase, "tokens", held, probe.prompt, [least, *(t for t in ladder(1, most) if t > least)])
    return replace(line, carried=tuple(_by_role(read, cell, line))) if probe.forces_roles else line


def _by_role(
    read: Callable[[Cell], Reading], cell: Callable[[int], Cell], line: Line
) -> Iterator[tuple[tuple[int, int], tuple[str, ...]]]:
    """Yield which roles change the bits when their M alone crosses a border."""
    for below, above in line.borders[:MOST_BORDERS]:
        here = read(cell(below)).bits
        alone = [(role, read(replace(cell(below), roles=((role, above),))).bits) for role in ROLES]
        yield (below, above), tuple(role for role, bits in alone if bits not in (None, here))


def _row_line(read: Callable[[Cell], Reading], phase: str, probe: Probe, most: int, tokens: int) -> Line:
    """Vary the rows with the launch's tokens held: what is left is attention over rows, and lm_head's M."""

    def cell(rows: int) -> Cell:
        return Cell(phase, rows, tokens)

    line = _line(read, cell, phase, "rows", f"{tokens} tokens", probe.prompt, ladder(fewest(probe), most))
    if not probe.forces_roles:
        return line
    carried = []
    for below, above in line.borders[:MOST_BORDERS]:
        here, there = read(cell(below)).bits, read(cell(above)).bits
        held = read(replace(cell(above), roles=(("lm_head", below),))).bits
        carriers = ("lm_head",) if held == here else ("attention",) if held == there else ("attention", "lm_head")
        carried.append(((below, above), carriers if held is not None else ()))
    return replace(line, carried=tuple(carried))


def _pad_line(read: Callable[[Cell], Reading], phase: str, probe: Probe, tokens: int) -> Line:
    """Vary the padding before the target, alone in its launch, with the M of every GEMM held."""
    values = [pad for pad in PADS if probe.prompt + pad <= tokens]
    points = [(pad, read(Cell(phase, 1, tokens, left_pad=pad)).bits) for pad in values]
    bare = read(Cell(phase, 1, tokens)).bits
    line = Line(phase, "left_pad", f"1 row, {tokens} tokens, explicit mask", probe.prompt, tuple(points))
    masked = points[0][1]
    return replace(line, carried=(((0, 0), ("mask",)),)) if masked not in (None, bare) else line


def _company_line(read: Callable[[Cell], Reading], phase: str, probe: Probe) -> Line:
    """Add the smallest neighbour there can be: rows and tokens move together, by one each."""
    points = [
        (count, read(Cell(phase, 1 + count, least_tokens(phase, 1 + count, probe.prompt))).bits) for count in (0, 1)
    ]
    return Line(phase, "neighbours", "nothing: rows and tokens move together", probe.prompt, tuple(points))


def _line(
    read: Callable[[Cell], Reading], cell: Callable[[int], Cell], phase: str, axis: str, held: str, prompt: int,
    values: Sequence[int],
) -> Line:  # fmt: skip
    """Read the values, and halve each gap whose ends differ until its ends are neighbours."""
    bits = {value: read(cell(value)).bits for value in values}

    def halve(low: int, high: int) -> None:
        if high - low < 2 or bits[low] == bits[high] or None in (bits[low], bits[high]):
            return
        middle = (low + high) // 2
        bits[middle] = read(cell(middle)).bits
        halve(low, middle)
        halve(middle, high)

    for low, high in itertools.pairwise(sorted(values)):
        halve(low, high)
    return Line(phase, axis, held, prompt, tuple(sorted(bits.items())))
