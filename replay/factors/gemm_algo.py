"""The cuBLASLt tactic of one GEMM role: id, tile, stages, split-K, reduction, swizzle, custom, inner, cluster.

The layers of the role are launched through cuBLASLt with that algorithm, in every pass. A bias is added afterwards.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from replay.cublaslt import DTYPES, Library, LtError, Prepared, Problem, library
from replay.cublaslt_log import Executed, executed
from replay.factors import Evidence, Setup, Unpinnable
from replay.reduction_tree import Shape, TreeError, last_addition
from replay.tactic import Tactic, TacticError, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKSPACE_KIB = 32 * 1024
"""What torch gives cuBLASLt on sm_90, where CUBLASLT_WORKSPACE_SIZE says nothing else."""

ALIGNMENT = 16
"""Bytes; what the library's check of a tactic takes for granted."""


@dataclass(frozen=True)
class Algo:
    """The factor for one role."""

    role: str

    @contextmanager
    def pin(self, value: str, setup: Setup) -> Iterator[None]:
        """Compute the layers of the role by the tactic; each shape is checked when it is met first."""
        name = f"gemm.{self.role}.algo"
        try:
            tactic = parse(value)
        except TacticError as fault:
            raise Unpinnable(f"{name}: {fault}") from None
        if setup.model.device.type != "cuda" or torch.version.cuda is None:
            raise Unpinnable(f"{name}: needs a CUDA device")
        setup.layers_of(self.role)
        try:
            products = Products(library(torch.version.cuda), tactic, name)
        except OSError as fault:
            raise Unpinnable(f"{name}: no cuBLASLt can be loaded: {fault}") from None
        setup.set_kernel(self.role, products, name)
        try:
            yield
        finally:
            products.close()

    def observe(self, evidence: Evidence) -> str | None:
        """Return the one tactic that the library logged in every call of the role, if the sums bear out its split."""
        ran = [
            [one for line in call.lt if (one := executed(line))] for call in evidence.calls if call.role == self.role
        ]
        tactics = {one.tactic for call in ran for one in call}
        if not all(ran) or len(tactics) != 1:
            return None
        return None if _contradicted(evidence, self.role, ran[0][-1]) else str(tactics.pop())


class Products:
    """What computes x·Wᵀ + b by one tactic, at whatever shapes come."""

    def __init__(self, lt: Library, tactic: Tactic, name: str) -> None:
        self.lt, self.tactic, self.name = lt, tactic, name
        self._prepared: dict[tuple[str, int, int, int], tuple[Problem, Prepared]] = {}

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the product. Raises Unpinnable where the library does not take the tactic for the shape."""
        flat, weight = _dense(x.reshape(-1, x.shape[-1])), _dense(weight)
        (m, k), n = flat.shape, weight.shape[0]
        out = torch.empty(m, n, dtype=x.dtype, device=x.device)
        problem, prepared = self._prepare(str(x.dtype).removeprefix("torch."), m, n, k)
        workspace = torch.empty(max(prepared.workspace, 1), dtype=torch.uint8, device=x.device)
        stream = torch.cuda.current_stream().cuda_stream
        try:
            problem.run(prepared, flat.data_ptr(), weight.data_ptr(), out.data_ptr(), workspace.data_ptr(), stream)
        except LtError as fault:
            raise Unpinnable(f"{self.name}={self.tactic}: {fault}") from None
        out = out.reshape(*x.shape[:-1], -1)
        return out if bias is None else out + bias

    def close(self) -> None:
        """Free the descriptors."""
        for problem, _ in self._prepared.values():
            problem.close()
        self._prepared.clear()

    def _prepare(self, dtype: str, m: int, n: int, k: int) -> tuple[Problem, Prepared]:
        if (dtype, m, n, k) not in self._prepared:
            where = f"{self.name}={self.tactic}, M={m} N={n} K={k} {dtype}"
            if dtype not in DTYPES:
                raise Unpinnable(f"{where}: not a dtype of this pin; it has {', '.join(DTYPES)}")
            problem = Problem(self.lt, dtype, m, n, k)
            try:
                prepared = problem.prepare(self.tactic)
            except LtError as fault:
                problem.close()
                raise Unpinnable(f"{where}: {fault}") from None
            if prepared.workspace > (most := int(os.environ.get("CUBLASLT_WORKSPACE_SIZE") or WORKSPACE_KIB) * 1024):
                problem.close()
                raise Unpinnable(f"{where}: it needs {prepared.workspace} bytes of workspace, the process has {most}")
            self._prepared[dtype, m, n, k] = problem, prepared
        return self._prepared[dtype, m, n, k]


def _dense(matrix: torch.Tensor) -> torch.Tensor:
    """Return the matrix row after row, from an address that a tactic may read 16 bytes at once from."""
    dense = matrix.contiguous()
    return dense.clone() if dense.data_ptr() % ALIGNMENT else dense


def _contradicted(evidence: Evidence, role: str, ran: Executed) -> bool:
    """Return whether the order of additions rules out that K was split: then what joins last is but a small part."""
    if ran.tactic.splitk < 2 or evidence.linear is None:
        return False
    shape = Shape(ran.m, ran.n, ran.k, getattr(torch, evidence.dtype), evidence.device)
    linear = evidence.linear
    try:
        return last_addition(lambda x, w: linear(role, x, w), shape) * 2 * ran.tactic.splitk < ran.k
    except TreeError:
        return False


def of(name: str) -> Algo:
    """Return the factor of a full name."""
    return Algo(name.split(".")[1])
