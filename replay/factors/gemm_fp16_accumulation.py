"""Accumulation of fp16 products in fp16 on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replay.factors import Evidence, Setup, Unpinnable

LARGE = 4096


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Set it for the block."""
    if setup.model.device.type != "cuda":
        raise Unpinnable(f"gemm.fp16_accumulation={value}: a switch of cuBLAS, which needs a CUDA device")
    matmul = torch.backends.cuda.matmul
    previous = matmul.allow_fp16_accumulation
    matmul.allow_fp16_accumulation = value == "true"
    try:
        yield
    finally:
        matmul.allow_fp16_accumulation = previous


def observe(evidence: Evidence) -> str | None:
    """Return whether a sum that fp16 cannot hold exactly comes out short: LARGE + 1 + 1 + …, tried here."""
    if not torch.cuda.is_available():
        return None
    x = torch.ones(64, LARGE + 512, dtype=torch.float16, device="cuda")
    total = float((x @ x.t() / 2).float()[0, 0])
    return str(total < (LARGE + 512) / 2).lower()
