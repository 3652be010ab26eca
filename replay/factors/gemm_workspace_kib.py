"""Workspace that cuBLASLt may use: too little of it rules tactics out. Read once: the process starts with it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from replay.cublaslt_log import allowed
from replay.factors import Evidence, Setup, Unpinnable


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Check that the process was started with it."""
    if setup.model.device.type != "cuda":
        raise Unpinnable(f"gemm.workspace_kib={value}: cuBLASLt is a library of a CUDA device")
    if os.environ.get("CUBLASLT_WORKSPACE_SIZE") != value:
        raise Unpinnable(f"gemm.workspace_kib={value}: this process was not started with it")
    yield


def observe(evidence: Evidence) -> str | None:
    """Return what cuBLASLt's log says that its heuristic might use, the same for every linear layer."""
    sizes = {one.workspace for call in evidence.calls for line in call.lt if (one := allowed(line))}
    return str(sizes.pop() // 1024) if len(sizes) == 1 else None
