"""Every linear layer as N partial sums over K, rounded to the weights' dtype and added in order.

In plain torch on purpose: a factor whose effect on bits is known on every machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from replay.factors import Evidence, LinearCall, Setup, Unpinnable
from replay.reduction_tree import COUNTABLE, Shape, TreeError, chained


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
    """Return the matrix products that one call of a linear layer made, if K is really summed in so many parts.

    The profiler counts them; the order of additions is then read from results, where the dtype allows it.
    """
    calls = [call for call in evidence.calls if call.products]
    counts = {sum(one[1] == call.products[-1][1] for one in call.products) for call in calls}
    if len(counts) != 1:
        return None
    splits, first = counts.pop(), calls[0]
    return None if splits > 1 and _contradicted(evidence, first, splits) else str(splits)


def _contradicted(evidence: Evidence, call: LinearCall, splits: int) -> bool:
    """Return whether the layer's results rule out a sum in parts, each added to all before it."""
    dtype, linear = getattr(torch, evidence.dtype), evidence.linear
    if linear is None or dtype not in COUNTABLE:
        return False
    k = sum(depth for _, rows, depth in call.products if rows == call.products[-1][1])
    parts = [len(part) for part in torch.arange(k).tensor_split(splits)]
    shape = Shape(1, min(k, 256), k, dtype, evidence.device)
    try:
        return not chained(lambda x, w: linear(call.role, x, w), shape, parts)
    except TreeError:
        return True
