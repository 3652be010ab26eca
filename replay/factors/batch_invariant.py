"""A mode in which a row's result does not depend on how many rows the product has. On a CPU: fp32 in MKL's STRICT mode.

Read once by the library: the process starts with it. On a GPU it takes vLLM's or another package's kernels.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replay.factors import Evidence, Setup, Unpinnable

ROWS = (1, 2, 3, 4, 8, 15, 16, 33, 64, 192)
SHAPES = ((192, 576), (576, 1536))


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Check that the process was started with it, and that it covers the weights' dtype."""
    if setup.model.device.type != "cpu":
        raise Unpinnable(
            "batch_invariant: on a GPU it takes kernels of another package, which this version does not load"
        )
    strict = os.environ.get("MKL_CBWR", "").endswith(",STRICT")
    if value == "true" and not strict:
        raise Unpinnable("batch_invariant=true: this process was not started with it")
    if value == "true" and setup.model.dtype != torch.float32:
        raise Unpinnable("batch_invariant=true: MKL's STRICT mode covers fp32; pin dtype.weights=float32 too")
    if value == "false" and strict:
        raise Unpinnable("batch_invariant=false: this process was started with MKL's STRICT mode")
    yield


def observe(evidence: Evidence) -> str | None:
    """Return whether the first row of fp32 products has the same bits for every number of rows, tried here."""
    draw = torch.Generator().manual_seed(0)
    for n, k in SHAPES:
        x, weight = torch.randn(max(ROWS), k, generator=draw), torch.randn(n, k, generator=draw)
        first = {torch.nn.functional.linear(x[:m].contiguous(), weight)[0].numpy().tobytes() for m in ROWS}
        if len(first) > 1:
            return "false"
    return "true"
