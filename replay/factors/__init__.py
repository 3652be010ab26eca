"""A file is a plan factor: how to force it and how to see what really ran.

`batch_rows.py` is the factor `batch.rows`. Each file has two functions and imports no sibling:

    pin(value, setup)    a context manager. Shape factors edit the setup, state factors hold a setting for the block;
                         raises Unpinnable when the value cannot be honoured, and never does something near it instead
    observe(evidence)    the value in force, from what was seen of the run and not from what was asked; None: not seen
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


class Unpinnable(Exception):  # noqa: N818 - the word that the documents use
    """The factor cannot be set to this value; the message says why."""


@dataclass
class Setup:
    """What a trial will run: the model, and the launch around the request. Pins edit it before it is built.

    `load` returns the model in a given dtype. `processors` act on the scores before the token is taken.
    """

    load: Callable[[str], Any]
    model: Any
    rows: int = 1
    row: int = 0
    left_pad: int = 0
    mask_path: str | None = None
    neighbours: str | None = None
    processors: list[Any] = field(default_factory=list)


@dataclass
class Evidence:
    """What was seen of a trial: profiler operators of its first passes, and the passes as the hooks saw them.

    operators: (name, input shapes) of the profiled passes; launches: every pass; row: where tokens were read;
    neighbours: the recorded ids of the other rows; report: torch's own summary of its build and threads, while pinned.
    """

    operators: list[tuple[str, list[list[int]]]] = field(default_factory=list)
    profiled_launches: int = 0
    launches: list[Any] = field(default_factory=list)
    row: int = 0
    target: tuple[int, ...] = ()
    neighbours: list[tuple[int, ...]] | None = None
    linear_layers: int = 0
    report: str = ""

    def shapes(self, operator: str) -> list[list[list[int]]]:
        """Return the input shapes of every profiled call of an operator."""
        return [shapes for name, shapes in self.operators if name == operator]


class Factor(Protocol):
    """What every file in this folder offers."""

    def pin(self, value: str, setup: Setup) -> AbstractContextManager[None]:
        """Force the factor for the block, or raise Unpinnable."""

    def observe(self, evidence: Evidence) -> str | None:
        """Return the value that was in force."""


def factor(name: str) -> Factor:
    """Return the file of a factor. Raises Unpinnable when there is none."""
    module = f"{__name__}.{name.replace('.', '_')}"
    if importlib.util.find_spec(module) is None:
        raise Unpinnable(f"{name}: this version observes it at most, it cannot set it")
    loaded: Any = importlib.import_module(module)
    return loaded  # type: ignore[no-any-return]
