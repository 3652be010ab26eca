"""Whether partial sums of a split K may be added in bf16 or fp16 on a GPU, and whether K may be split at all.

'no_split_k' forbids both; torch takes it with cuBLASLt only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from replay.factors import Evidence, Setup, Unpinnable

VALUES: dict[str, Any] = {"true": True, "false": False, "no_split_k": (False, False)}


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Set both switches, for bf16 and fp16, for the block."""
    if setup.model.device.type != "cuda":
        raise Unpinnable(f"gemm.reduced_precision_reduction={value}: a switch of cuBLAS, which needs a CUDA device")
    matmul = torch.backends.cuda.matmul
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    previous = {name: getattr(matmul, name) for name in names}
    try:
        for name in names:
            setattr(matmul, name, VALUES[value])
        yield
    except (RuntimeError, TypeError) as fault:
        if value != "no_split_k":
            raise
        raise Unpinnable(f"gemm.reduced_precision_reduction=no_split_k: {fault}") from fault
    finally:
        for name, one in previous.items():
            setattr(matmul, name, one)


def observe(evidence: Evidence) -> str | None:
    """Return no_split_k where no kernel of the profile splits K. What sums are added in, a kernel's name hides."""
    if not evidence.kernels:
        return None
    return None if any("splitk" in name.lower() for name in evidence.kernels) else "no_split_k"
