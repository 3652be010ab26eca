"""What the events of a profile say of the linear layers of a model, and of the arguments of other operators."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from replay.cublaslt_log import executed
from replay.factors import LinearCall

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PASS, LINEAR = "forensics.pass", "forensics.linear"
PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0, "aten::_weight_int8pack_mm": 0}
"""Operator of a matrix product → which of its inputs is x."""


def linear_calls(events: Iterable[tuple[str, list[list[int]], int, int]]) -> list[LinearCall]:
    """Return the linear layers of the profiled passes, each with the operators inside of it.

    events: (name, input shapes, start, end), in any order; what lies within a layer's span belongs to it.
    """
    number, until = -1, 0
    found: list[tuple[int, str, list[tuple[str, list[list[int]]]]]] = []
    for name, shapes, _, end in sorted(events, key=lambda event: (event[2], -event[3])):
        if name == PASS:
            number += 1
        elif name.startswith(LINEAR):
            found.append((number, name.removeprefix(f"{LINEAR}."), []))
            until = end
        elif found and end <= until:
            found[-1][2].append((name, shapes))
    return [
        LinearCall(number, role or None, tuple(_product(*one) for one in within if one[0] in PRODUCTS),
                   frozenset(name for name, _ in within))
        for number, role, within in found
    ]  # fmt: skip


def with_log(call: LinearCall, lines: tuple[str, ...]) -> LinearCall:
    """Return the call with what cuBLASLt logged in it: also its products, where no operator of torch made them."""
    ran = tuple(("cublasLtMatmul", one.m, one.k) for line in lines if (one := executed(line)) is not None)
    return replace(call, products=call.products or ran, lt=lines)


def num_splits(operator: str, event: Any) -> Iterator[int]:
    """Yield the value of an operator's argument num_splits, where it has one."""
    if operator.startswith("aten::") or "::" not in operator:
        return
    for schema in torch._C._jit_get_schemas_for_operator(operator):
        names = [argument.name for argument in schema.arguments]
        given = event.concrete_inputs() if "num_splits" in names else ()
        if len(given) == len(names) and isinstance(value := given[names.index("num_splits")], int):
            yield value
            return


def _product(name: str, shapes: list[list[int]]) -> tuple[str, int, int]:
    x = shapes[PRODUCTS[name]]
    return name, _rows(x), x[-1]


def _rows(shape: list[int]) -> int:
    count = 1
    for length in shape[:-1]:
        count *= length
    return count
