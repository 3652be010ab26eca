"""The nouns of a map: a cell is one launch around the target, a reading its bits, a line one thing varied.

Standard library only.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

PHASES: Final = ("prefill", "decode")
ROLES: Final = ("q", "k", "v", "o", "gate", "up", "down")
"""GEMM roles whose row count M is the launch's tokens. That of lm_head is the launch's rows: it belongs to them."""


class MapError(Exception):
    """No map can be made; the message says why and what to do. exit_code: whose fault it is."""

    def __init__(self, message: str, exit_code: int = 4) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Cell:
    """One launch around the target. In `decode` the keys and values of the prompt are always those of the target alone.

    rows: requests in the launch, the target among them. tokens: of all of them, padding included. left_pad: pad tokens
    before the target, with an explicit mask; None: no mask. roles: (role, M) where a GEMM has another M than `tokens`
    says.
    """

    phase: str
    rows: int
    tokens: int
    left_pad: int | None = None
    roles: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Reading:
    """What came out of a cell: the hash of the target's row of raw logits, or why there is none."""

    bits: str | None
    why: str | None = None


class Probe(Protocol):
    """One target on one engine. prompt: its tokens."""

    prompt: int

    def read(self, cell: Cell, repeat: int = 0) -> Reading:
        """Run a cell; with another `repeat` run it again. Raises MapError or TrialError when none can run."""

    @property
    def forces_roles(self) -> bool:
        """Return whether the M of a GEMM can be forced: then a row can be in a launch of any size, and padded."""


@dataclass(frozen=True)
class Line:
    """One thing varied with everything else held. points: (value, bits) in order; borders: neighbours that differ.

    carried: (border, what carries it): GEMM roles whose M alone changes the bits there, or 'attention'.
    """

    phase: str
    axis: str
    held: str
    prompt: int
    points: tuple[tuple[int, str | None], ...]
    carried: tuple[tuple[tuple[int, int], tuple[str, ...]], ...] = ()

    @property
    def borders(self) -> list[tuple[int, int]]:
        """Return the pairs of neighbouring values whose bits differ; cells that did not run part nothing."""
        ran = [(value, bits) for value, bits in self.points if bits is not None]
        return [(one, other) for (one, a), (other, b) in itertools.pairwise(ran) if a != b]


@dataclass
class Survey:
    """All that was found. repeats: whether the first cell, run again at the end, gave the same bits."""

    prompt: int
    cells: list[tuple[Cell, Reading]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    repeats: bool = True

    def document(self) -> dict[str, Any]:
        """Return it in JSON's values."""
        return {
            "prompt_tokens": self.prompt,
            "repeats": self.repeats,
            "cells": [asdict(cell) | asdict(reading) for cell, reading in self.cells],
            "lines": [asdict(line) | {"borders": line.borders} for line in self.lines],
        }


def least_tokens(phase: str, rows: int, prompt: int) -> int:
    """Return how many tokens a launch of so many rows has at least: one of each neighbour."""
    return rows - 1 + (prompt if phase == "prefill" else 1)


def fewest(probe: Probe) -> int:
    """Return the fewest rows of a launch whose tokens can be chosen: more tokens need a neighbour, or a forced M."""
    return 1 if probe.forces_roles else 2
