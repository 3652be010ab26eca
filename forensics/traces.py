"""What readers of other tools' traces share: how a step is marked in one, and the forms of names, sizes and shapes.

An engine, or whoever drives it, marks a step with a range named `engine_step=17`: `torch.profiler.record_function`,
`torch.cuda.nvtx.range`. A name that says what a step held, but not which one it was, states no step.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MARKED_STEP: Final = re.compile(r"engine_step=(\d{1,15})")
JOINED: Final = {
    "allreduce": "all_reduce", "allgather": "all_gather", "alltoall": "all_to_all", "reducescatter": "reduce_scatter",
}  # fmt: skip
ELEMENT_BYTES: Final = {
    "double": 8, "long": 8, "float": 4, "int": 4, "half": 2, "bfloat16": 2, "short": 2, "byte": 1, "char": 1, "bool": 1,
    "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip
POINT_TO_POINT: Final = ("send", "recv")
PRODUCTS: Final = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
"""Matrix products of torch → place of the left operand among the inputs."""


class MarkedSteps:
    """The marked steps of one process, as (start, end, engine step) on one clock."""

    def __init__(self, windows: Iterable[tuple[float, float, int]]) -> None:
        self._windows = sorted(windows)
        self._starts = [start for start, _, _ in self._windows]
        self._latest_ends = list(accumulate((end for _, end, _ in self._windows), max))

    def of(self, start: float, end: float) -> int | None:
        """Return the only step that a span lies in; None where there is none, or several were under way."""
        place = bisect_right(self._starts, start) - 1
        if place < 0 or end > self._windows[place][1]:
            return None
        others = place > 0 and self._latest_ends[place - 1] > start
        begun = place + 1 < len(self._starts) and self._starts[place + 1] < end
        return None if others or begun else self._windows[place][2]


def marked_step(name: str) -> int | None:
    """Return the engine step that the name of a range states, or None."""
    found = MARKED_STEP.fullmatch(name)
    return int(found[1]) if found else None


def launch(grid: Sequence[Any], block: Sequence[Any]) -> str:
    """Return the launch of a kernel, as `kernel.launch` has it."""
    return ",".join(f"{name}={'x'.join(map(str, size))}" for name, size in (("grid", grid), ("block", block)))


def product(m: int, n: int, k: int, batch: int = 1) -> str:
    """Return the shape of D = A·B in torch's row-major terms, as `kernel.shape` has it: M tokens, N out, K in."""
    return (f"b={batch}," if batch > 1 else "") + f"m={m},n={n},k={k}"


def product_of(operator: str, sizes: Any) -> str | None:
    """Return the shape of an operator's product from the sizes of its inputs; None where it is none, or unsaid."""
    place = PRODUCTS.get(operator)
    if place is None or type(sizes) is not list or len(sizes) < place + 2:
        return None
    left, right = sizes[place : place + 2]
    if not (are_sizes(left) and are_sizes(right)) or len(left) != len(right) or len(left) not in (2, 3):
        return None
    return product(left[-2], right[-1], left[-1], left[0] if len(left) == 3 else 1)


def are_sizes(value: Any) -> TypeGuard[list[int]]:
    """Return whether a value is an array of integers."""
    return type(value) is list and all(type(size) is int for size in value)


def collective(name: str) -> str:
    """Return the name of a collective as `collective.op` has it: `nccl:_all_gather_base` is all_gather."""
    plain = name.rpartition(":")[2].partition(" ")[0].strip("_").removesuffix("_base")
    return JOINED.get(plain, plain)


def element_bytes(dtype: str) -> int | None:
    """Return the size of an element by torch's name of its type, as in `Float` or `c10::BFloat16`; None if unknown."""
    return ELEMENT_BYTES.get(dtype.removeprefix("c10::").lower())
