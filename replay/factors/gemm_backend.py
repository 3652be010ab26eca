"""BLAS library that torch calls on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
    """Return the library from the runtime calls in the profile; kernel names are shared, so they cannot tell."""
    names = {name.lower() for name, _ in evidence.operators}
    if any(name.startswith("cublasltmatmul") for name in names):
        return "cublaslt"
    return "cublas" if any(name.startswith("cublasgemm") for name in names) else None
