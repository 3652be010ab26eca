"""The profiler and cuBLASLt's log over the first passes of a trial: what a factor reads, by the layer that it ran in.

An event costs about as much as a small operator, most of it after the run. So inside of a pass only linear layers,
embeddings and the functions of attention are recorded, in every layer of the model; norms, rotary embeddings and sums
are not.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from replay.cublaslt_log import executed
from replay.engines.transformers_lt import LtLog
from replay.factors import LinearCall

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from replay.factors import Evidence, Setup

PASS, LINEAR = "forensics.pass", "forensics.linear"
PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0, "aten::_weight_int8pack_mm": 0}
"""Operator of a matrix product → which of its inputs is x."""

SHAPED = {*PRODUCTS, "aten::embedding", "aten::scaled_dot_product_attention"}
"""Operators whose input shapes a factor reads; asking for those of all takes longer than a pass of a small model."""

ATTENTION = ("scaled_dot_product_attention", "softmax")
"""Functions of torch.nn.functional whose operators tell torch's attention from the eager one; packages have others."""


class Profile:
    """Runs from its making until `stop`."""

    def __init__(self, setup: Setup) -> None:
        self._stack, self._recording = ExitStack(), [True]
        self._stack.callback(torch._C._autograd._enable_record_function, True)
        self._lt = LtLog(setup.model.device.type)
        self._stack.callback(self._lt.close)
        self._scope(setup.model, PASS, inside=False)
        for role, layer in setup.linear_layers():
            self._scope(layer, f"{LINEAR}.{role or ''}", inside=True, log=self._lt)
        package = setup.model.config._attn_implementation not in ("sdpa", "eager")
        for module in setup.model.modules():
            if isinstance(module, torch.nn.Embedding) or (package and "Attention" in type(module).__name__):
                self._scope(module, f"forensics.{type(module).__name__}", inside=True)
        for name in ATTENTION:
            self._open_up(name)
        self._profiler = torch.profiler.profile(record_shapes=True)
        self._profiler.start()

    def _switch(self, on: bool) -> None:
        self._recording.append(on)
        torch._C._autograd._enable_record_function(on)

    def _switch_back(self) -> None:
        self._recording.pop()
        torch._C._autograd._enable_record_function(self._recording[-1])

    def _scope(self, module: Any, name: str, *, inside: bool, log: LtLog | None = None) -> None:
        """Name the module's part of the profile and of the log, and record inside of it or not."""
        open_scopes: list[ExitStack] = []

        def enter(*_: Any) -> None:
            scope = ExitStack()
            if inside:
                self._switch(True)
                scope.callback(self._switch_back)
            scope.enter_context(torch.profiler.record_function(name))
            if not inside:
                self._switch(False)
                scope.callback(self._switch_back)
            if log:
                log.enter()
                scope.callback(log.leave)
            open_scopes.append(scope)

        def leave(*_: Any) -> None:
            if open_scopes:
                open_scopes.pop().close()

        self._stack.callback(module.register_forward_pre_hook(enter).remove)
        self._stack.callback(module.register_forward_hook(leave, always_call=True).remove)

    def _open_up(self, name: str) -> None:
        """Record inside of a function of torch.nn.functional; it computes what it did."""
        original = getattr(torch.nn.functional, name)

        @functools.wraps(original)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            self._switch(True)
            try:
                return original(*args, **kwargs)
            finally:
                self._switch_back()

        setattr(torch.nn.functional, name, recorded)
        self._stack.callback(setattr, torch.nn.functional, name, original)

    def stop(self, evidence: Evidence) -> None:
        """End the recording and hand over what was seen."""
        self._profiler.stop()
        self._stack.close()
        # What profiler.events() parses from: it takes four times as long, more than a trial of a small model.
        events = self._profiler.profiler.kineto_results.events()
        device = torch.autograd.DeviceType
        found = [(event.name(), event) for event in events if event.device_type() == device.CPU]
        named = [(name, event.shapes() if name in SHAPED else [], event) for name, event in found]
        evidence.operators = [(name, shapes) for name, shapes, _ in named]
        evidence.kernels = [event.name() for event in events if event.device_type() == device.CUDA]
        evidence.splits = [count for name, event in found for count in num_splits(name, event)]
        calls = linear_calls(
            (name, shapes, event.start_ns(), event.start_ns() + event.duration_ns()) for name, shapes, event in named
        )
        evidence.calls = [with_log(call, self._lt.lines(number)) for number, call in enumerate(calls)]


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
