"""A mode in which a row's result does not depend on how many rows the product has.

On a CPU: fp32 in MKL's STRICT mode, which the library reads once: the process starts with it. On a CUDA device: every
linear layer by one Triton kernel of fixed tile; attention and norms are other factors' business.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from replay.factors import Evidence, Setup, Unpinnable

ROWS = (1, 2, 3, 4, 8, 15, 16, 33, 64, 192)
SHAPES = ((192, 576), (576, 1536))
TILE = "tile=64x64x32,splitk=1"


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Check that the process was started with it and that it covers the weights' dtype; or set the kernels."""
    if setup.model.device.type == "cuda":
        if value == "true":
            _set_kernels(setup)
    else:
        _check_strict(value, setup)
    yield


def _set_kernels(setup: Setup) -> None:
    try:
        from replay.triton_product import parse, product
    except ImportError:
        raise Unpinnable("batch_invariant=true: triton is not installed") from None
    tile = parse(TILE)

    def kernel(x: Any, weight: Any, bias: Any) -> Any:
        return product(tile, x, weight, bias)

    for role in {role for role, _ in setup.linear_layers()}:
        setup.set_kernel(role, kernel, "batch_invariant=true")


def _check_strict(value: str, setup: Setup) -> None:
    if setup.model.device.type != "cpu":
        raise Unpinnable("batch_invariant: there is no such mode for this device")
    strict = os.environ.get("MKL_CBWR", "").endswith(",STRICT")
    if value == "true" and not strict:
        raise Unpinnable("batch_invariant=true: this process was not started with it")
    if value == "true" and setup.model.dtype != torch.float32:
        raise Unpinnable("batch_invariant=true: MKL's STRICT mode covers fp32; pin dtype.weights=float32 too")
    if value == "false" and strict:
        raise Unpinnable("batch_invariant=false: this process was started with MKL's STRICT mode")


def observe(evidence: Evidence) -> str | None:
    """Return whether the first row of products has the same bits for every number of rows, tried here.

    On a CPU in fp32; on a CUDA device in the weights' dtype, as the layers compute it.
    """
    if evidence.linear is None or not evidence.calls:
        return None
    role, on_cpu = evidence.calls[0].role, evidence.device == "cpu"
    dtype = torch.float32 if on_cpu else getattr(torch, evidence.dtype)
    draw = torch.Generator().manual_seed(0)
    for n, k in SHAPES:
        shapes = (max(ROWS), k), (n, k)
        x, weight = (torch.randn(shape, generator=draw).to(evidence.device, dtype) for shape in shapes)
        first = {_bits(evidence.linear(role, x[:m].contiguous(), weight)[0]) for m in ROWS}
        if len(first) > 1:
            return "false"
    return "true"


def _bits(row: torch.Tensor) -> bytes:
    bits: bytes = row.cpu().view(torch.uint8).numpy().tobytes()
    return bits
