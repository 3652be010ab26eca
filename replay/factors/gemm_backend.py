"""BLAS library that torch calls on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replay.cublaslt_log import executed
from replay.factors import Evidence, Setup, Unpinnable


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Prefer the library for the block."""
    if setup.model.device.type != "cuda":
        raise Unpinnable(f"gemm.backend={value}: cuBLAS and cuBLASLt are libraries of a CUDA device")
    previous = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library(value)
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(previous)


def observe(evidence: Evidence) -> str | None:
    """Return the library from cuBLASLt's log: what cuBLAS passes on to it comes under names of its own."""
    ran = [one.function for call in evidence.calls for line in call.lt if (one := executed(line))]
    found = {"cublaslt" if function == "cublasLtMatmul" else "cublas" for function in ran}
    return found.pop() if len(found) == 1 else None
