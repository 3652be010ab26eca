"""Every linear layer as N partial sums over K, rounded to the weights' dtype and added in order.

In plain torch on purpose: a factor whose effect on bits is known on every machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from replay.factors import Evidence, Setup, Unpinnable


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Let every linear layer of the model be computed in pieces."""
    splits = int(value)
    layers = setup.linear_layers()
    if not layers:
        raise Unpinnable(f"gemm.k_split={value}: the model has no torch.nn.Linear layer")
    if any(layer.in_features < splits for _, layer in layers):
        raise Unpinnable(f"gemm.k_split={value}: a layer has fewer than {value} input features")
    for role in {role for role, _ in layers} if splits > 1 else ():
        setup.set_kernel(role, partial(split_linear, splits), f"gemm.k_split={value}")
    yield


def split_linear(splits: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return x·Wᵀ + b with K cut into `splits` pieces."""
    pieces = zip(x.tensor_split(splits, dim=-1), weight.tensor_split(splits, dim=-1), strict=True)
    total: torch.Tensor | None = None
    for part, columns in pieces:
        product = torch.nn.functional.linear(part, columns)
        total = product if total is None else total + product
    assert total is not None
    return total if bias is None else total + bias


def observe(evidence: Evidence) -> str | None:
    """Return the matrix products that one call of a linear layer made, as the profiler counted them."""
    counts = {sum(one[1] == call.products[-1][1] for one in call.products) for call in evidence.calls if call.products}
    return str(counts.pop()) if len(counts) == 1 else None
