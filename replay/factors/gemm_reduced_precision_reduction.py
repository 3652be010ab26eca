"""Whether partial sums of a split K may be added in bf16 or fp16 on a GPU, and whether K may be split at all.

'no_split_k' forbids both; torch takes it with cuBLASLt only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from replay.cublaslt_log import EVERY_SCHEME, allowed
from replay.factors import Evidence, Setup, Unpinnable

VALUES: dict[str, Any] = {"true": True, "false": False, "no_split_k": (False, False)}
SCHEMES = {EVERY_SCHEME: "true", "compute_type": "false", "none": "no_split_k"}
"""What the heuristic may choose from → the switch that torch sets it by."""


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
    """Return the switch from the reduction schemes that cuBLASLt's log says were allowed for the linear layers."""
    asked = [one.reductions for call in evidence.calls for line in call.lt if (one := allowed(line))]
    return SCHEMES.get(asked[0]) if len(set(asked)) == 1 else None
