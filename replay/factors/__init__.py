"""A file is a plan factor: how to force it and how to see what really ran.

`batch_rows.py` is the factor `batch.rows`; `gemm_rows.py` serves gemm.<role>.rows for every role. Each file has two
functions, or an `of(name)` that returns an object with them, and imports no sibling:

    pin(value, setup)    a context manager. Shape factors edit the setup, state factors hold a setting for the block;
                         raises Unpinnable when the value cannot be honoured, and never does something near it instead
    observe(evidence)    the value in force, from what was seen of the run and not from what was asked; None: not seen
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from replay.catalogue import factors

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

LAYERS = {f"{role}_proj": role for role in ("q", "k", "v", "o", "gate", "up", "down")} | {"lm_head": "lm_head"}
"""Last part of a linear layer's name → GEMM role."""

PROFILED_PASSES = 2
"""Passes that the profiler sees: the one that gives the first token, and one more."""


class Unpinnable(Exception):  # noqa: N818 - the word that the documents use
    """The factor cannot be set to this value; the message says why."""


@dataclass
class Setup:
    """What a trial will run: the model, and the launch around the request. Pins edit it before it is built.

    load: returns the model in a given dtype. prompt: tokens of the request. processors: act on the scores before the
    token is taken. chunks: lengths of the prompt's passes, () for one. kernels: role (or None: a linear layer without
    one) → what computes x·Wᵀ + b instead of torch. gemm_rows: (role, 0 for the prompt's pass or 1 for later ones) → M.
    schedule: whose launches, 'alone', 'incident' or 'reference'; None: one padded batch. attention: the pinned backend.
    """

    load: Callable[[str], Any]
    model: Any
    prompt: int = 0
    rows: int = 1
    row: int = 0
    left_pad: int = 0
    right_pad: int = 0
    launch_tokens: int | None = None
    chunks: tuple[int, ...] = ()
    cached_prefix: int = 0
    use_cache: bool = True
    mask_path: str | None = None
    neighbours: str | None = None
    processors: list[Any] = field(default_factory=list)
    kernels: dict[str | None, Callable[..., Any]] = field(default_factory=dict)
    gemm_rows: dict[tuple[str, int], int] = field(default_factory=dict)
    schedule: str | None = None
    attention: str | None = None

    def linear_layers(self) -> list[tuple[str | None, Any]]:
        """Return (role, layer) of every linear layer of the model."""
        import torch

        named = self.model.named_modules()
        return [(LAYERS.get(name.rpartition(".")[2]), one) for name, one in named if isinstance(one, torch.nn.Linear)]

    def layers_of(self, role: str) -> list[Any]:
        """Return the layers of a role. Raises Unpinnable where the model has none under that name."""
        found = [layer for own, layer in self.linear_layers() if own == role]
        if not found:
            name = next(name for name, own in LAYERS.items() if own == role)
            others = sorted({name.rpartition(".")[2] for name, _ in self.model.named_modules() if "proj" in name})
            raise Unpinnable(
                f"gemm.{role}: the model has no layer {name}; it has {', '.join(others) or 'no projections'}"
            )
        return found

    def product(self, role: str | None, x: Any, weight: Any) -> Any:
        """Return x·Wᵀ as the layers of a role compute it under the pins."""
        import torch

        return self.kernels.get(role, torch.nn.functional.linear)(x, weight, None)

    def set_kernel(self, role: str | None, kernel: Callable[..., Any], factor: str) -> None:
        """Let `kernel(x, weight, bias)` compute the layers of a role. Raises Unpinnable where another factor does."""
        if role in self.kernels:
            raise Unpinnable(f"{factor}: another pinned factor already computes the {role or 'unnamed'} layers")
        self.kernels[role] = kernel


@dataclass(frozen=True)
class LinearCall:
    """One linear layer in one pass, as the profiler saw it: the matrix products in it as (operator, rows M, inner K).

    Where only the request's own rows ran at a forced M, theirs are the last products. lt: what cuBLASLt logged in it.
    """

    number: int
    role: str | None
    products: tuple[tuple[str, int, int], ...]
    operators: frozenset[str] = frozenset()
    lt: tuple[str, ...] = ()


@dataclass(frozen=True)
class Packed:
    """A launch without padding, rows one after another: (tokens, tokens computed before) of each, in order.

    own: place of the request's row, None where it has none.
    """

    rows: tuple[tuple[int, int], ...]
    own: int | None

    def others(self) -> tuple[tuple[int, int], ...]:
        """Return the rows of the neighbours."""
        return tuple(row for at, row in enumerate(self.rows) if at != self.own)


@dataclass
class Evidence:
    """What was seen of a trial: profiler operators of its first passes, and the passes as the hooks saw them.

    operators: (name, input shapes where a factor reads them) of the profiled passes; splits: values of an argument
    num_splits among them; calls: the linear layers among them; kernels: names of device kernels; launches: every pass;
    row: where tokens were read; neighbours: the recorded ids of the other rows; hidden_dtype: of what reached the
    output head; packed: what reached the model in each launch of a schedule; schedules: arm → its launches on record;
    schedule: the one that was asked for; linear: (role, x, weight) → x·Wᵀ as the layers of the role compute it, on
    `device` in `dtype`. `linear`, `report` and `verbose` are asked for while everything is pinned.
    """

    operators: list[tuple[str, list[list[int]]]] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    calls: list[LinearCall] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    launches: list[Any] = field(default_factory=list)
    row: int = 0
    target: tuple[int, ...] = ()
    neighbours: list[tuple[int, ...]] | None = None
    hidden_dtype: str | None = None
    packed: list[Packed] = field(default_factory=list)
    schedules: dict[str, list[Packed]] = field(default_factory=dict)
    schedule: str | None = None
    linear: Callable[[str | None, Any, Any], Any] | None = None
    device: str = "cpu"
    dtype: str = "bfloat16"

    def shapes(self, operator: str) -> list[list[list[int]]]:
        """Return the input shapes of every profiled call of an operator."""
        return [shapes for name, shapes in self.operators if name == operator]

    def keys_seen(self) -> list[bool] | None:
        """Return which keys the last query may see, from the mask that reached attention: [] for none, None: unseen."""
        launch = self.launches[0]
        if not launch.mask_seen:
            return None
        if launch.attention_mask is None:
            return []
        last = launch.attention_mask[self.row, 0, -1]
        seen: list[bool] = (last == 0 if last.dtype.is_floating_point else last).bool().tolist()
        return seen

    @cached_property
    def report(self) -> str:
        """Return torch's own summary of its threads and build."""
        import torch

        return str(torch.__config__.parallel_info() + torch.__config__.show())

    @cached_property
    def verbose(self) -> str:
        """Return what oneDNN and MKL print of one bf16 and one fp32 matrix product on the CPU, run now."""
        return verbose_products()


_headers: list[str] = []
"""oneDNN says once a process which instruction set it uses."""


def verbose_products() -> str:
    """Run a bf16 and an fp32 product, and a oneDNN call, with both libraries verbose; return what they print."""
    import ctypes
    import os
    import tempfile

    import torch
    from torch.backends import mkl, mkldnn

    saved = os.dup(1)  # the libraries print to descriptor 1, whatever sys.stdout is
    with tempfile.TemporaryFile() as file:
        ctypes.CDLL(None).fflush(None)
        os.dup2(file.fileno(), 1)
        try:
            with mkldnn.verbose(mkldnn.VERBOSE_ON), mkl.verbose(mkl.VERBOSE_ON):
                for dtype in (torch.bfloat16, torch.float32):
                    torch.nn.functional.linear(torch.ones(4, 64, dtype=dtype), torch.ones(32, 64, dtype=dtype))
                if mkldnn.is_available():
                    torch.relu(torch.ones(4, 64).to_mkldnn())
            ctypes.CDLL(None).fflush(None)
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        file.seek(0)
        lines = file.read().decode("utf-8", "replace").splitlines()
    _headers.extend(line for line in lines if ",info,cpu,isa:" in line)
    return "\n".join([*_headers, *lines])


class Factor(Protocol):
    """What every file in this folder offers."""

    def pin(self, value: str, setup: Setup) -> AbstractContextManager[None]:
        """Force the factor for the block, or raise Unpinnable."""

    def observe(self, evidence: Evidence) -> str | None:
        """Return the value that was in force."""


def file_of(name: str) -> str:
    """Return the file of a factor, without its ending: gemm.q.rows and gemm.k.rows are both in gemm_rows."""
    parts = name.split(".")
    if len(parts) > 2 and parts[1] in LAYERS.values():
        parts = [parts[0], parts[2]]
    return "_".join(parts)


def factor(name: str, engine: str = "transformers") -> Factor:
    """Return what pins and observes a factor on an engine. Raises Unpinnable when there is nothing."""
    module = f"{__name__}.{file_of(name)}"
    if importlib.util.find_spec(module) is None:
        raise Unpinnable(f"{name}: this version observes it at most, it cannot set it")
    pinnable = factors()[name]["pinnable"] if name in factors() else []
    if engine not in pinnable:
        raise Unpinnable(f"{name}: this version sets it on {', '.join(pinnable) or 'no engine'}, not on {engine}")
    loaded: Any = importlib.import_module(module)
    return loaded.of(name) if hasattr(loaded, "of") else loaded  # type: ignore[no-any-return]
