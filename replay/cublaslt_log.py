"""What the cuBLASLt log says of each matrix product: the tactic that ran, and what its heuristic had been allowed.

A line is as the library writes it, `[time][cublasLt][pid][level][function] message`; only `[function] message` is read.
Attributes at their default are left out of it. Standard library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from replay.tactic import Tactic, TacticError, parse

EVERY_SCHEME = "all"


@dataclass(frozen=True)
class Executed:
    """One product D = op(A)·op(B) that was launched. In torch's row-major terms: M tokens, N out, K in features.

    function: cublasLtMatmul where the caller asked cuBLASLt; a name with types in it, as cublasLtTSTMatmul, where
    cuBLAS passed the call on.
    """

    function: str
    tactic: Tactic
    m: int
    n: int
    k: int
    workspace: int


@dataclass(frozen=True)
class Allowed:
    """What one question to the heuristic allowed: reduction schemes of a split K, and workspace in bytes."""

    reductions: str
    workspace: int


def executed(line: str) -> Executed | None:
    """Return the product of a line, or None where it is of something else or of an attribute that we do not know."""
    function = re.search(r"\[(cublasLt\w*Matmul)\] ", line)
    if function is None or "algo=[" not in line:
        return None
    a, d = _matrix(line, "A"), _matrix(line, "D")
    workspace = re.search(r"workSpaceSizeInBytes=(\d+)", line)
    if a is None or d is None or workspace is None:
        return None
    transposed = re.search(r"\btransa=OP_(T|C)\b", line) is not None
    try:
        return Executed(
            function[1], parse(line), m=d[1], n=d[0], k=a[0] if transposed else a[1], workspace=int(workspace[1])
        )
    except TacticError:
        return None


def allowed(line: str) -> Allowed | None:
    """Return what a question to the heuristic allowed, or None where the line is of something else."""
    found = re.search(r"\[cublasLt\w*AlgoGetHeuristic\] .*preference=\[([^\]]*)\]", line)
    if found is None:
        return None
    mask = re.search(r"reductionSchemeMask=((?:REDUCTION_SCHEME_\w+(?: \| )?)+)", found[1])
    workspace = re.search(r"maxWorkspaceSizeinBytes=(\d+)", found[1])
    schemes = mask[1].replace("REDUCTION_SCHEME_", "").lower().strip().split(" | ") if mask else [EVERY_SCHEME]
    return Allowed("|".join(schemes), int(workspace[1]) if workspace else 0)


def _matrix(line: str, name: str) -> tuple[int, int] | None:
    """Return rows and columns, column-major, of one of the operands."""
    found = re.search(rf"\b{name}desc=\[[^\]]*\brows=(\d+) cols=(\d+)", line)
    return (int(found[1]), int(found[2])) if found else None
