"""Internal precision of fp32 products: on a CPU oneDNN may take bf16, on a GPU the library may take TF32."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replay.factors import Evidence, Setup, Unpinnable


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Set it for the block."""
    on_cpu = setup.model.device.type == "cpu"
    if value == ("tf32" if on_cpu else "bf16"):
        raise Unpinnable(f"gemm.fp32_precision={value}: not available on a {'CPU' if on_cpu else 'GPU'}")
    matmul = torch.backends.mkldnn.matmul if on_cpu else torch.backends.cuda.matmul
    previous = matmul.fp32_precision
    matmul.fp32_precision = value
    try:
        yield
    finally:
        matmul.fp32_precision = previous


def observe(evidence: Evidence) -> str | None:
    """Return what oneDNN or MKL prints of an fp32 product; on a GPU, what the names of the kernels say."""
    if evidence.kernels:
        products = [name for name in evidence.kernels if "gemm" in name.lower() or "nvjet" in name]
        return ("tf32" if any("tf32" in name for name in products) else "ieee") if products else None
    if re.search(r"src:f32\S* .*attr-fpmath:bf16", evidence.verbose):
        return "bf16"
    return "ieee" if re.search(r"MKL_VERBOSE SGEMM|src:f32", evidence.verbose) else None
