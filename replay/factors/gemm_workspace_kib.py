"""Workspace that cuBLASLt may use: too little of it rules tactics out. Read once: the process starts with it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
    """Return what torch says it would hand out. Older versions do not say."""
    size = getattr(torch.backends.cuda, "cublaslt_workspace_size", None)
    return None if size is None else str(int(size()) // 1024)
