"""Every linear layer as N partial sums over K, rounded to the weights' dtype and added in order.

In plain torch on purpose: a factor whose effect on bits is known on every machine.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from replay.factors import Evidence, Setup, Unpinnable


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Replace the forward of every linear layer of the model for the block."""
    splits = int(value)
    layers = [module for module in setup.model.modules() if isinstance(module, torch.nn.Linear)]
    if not layers:
        raise Unpinnable(f"gemm.k_split={value}: the model has no torch.nn.Linear layer")
    if any(layer.in_features < splits for layer in layers):
        raise Unpinnable(f"gemm.k_split={value}: a layer has fewer than {value} input features")
    with ExitStack() as stack:
        for layer in layers if splits > 1 else ():
            layer.forward = partial(split_linear, layer, splits)
            stack.callback(delattr, layer, "forward")
        yield


def split_linear(layer: Any, splits: int, x: torch.Tensor) -> torch.Tensor:
    """Return x·Wᵀ + b with K cut into `splits` pieces."""
    pieces = zip(x.tensor_split(splits, dim=-1), layer.weight.tensor_split(splits, dim=-1), strict=True)
    total: torch.Tensor | None = None
    for part, weight in pieces:
        product = torch.nn.functional.linear(part, weight)
        total = product if total is None else total + product
    assert total is not None
    return total if layer.bias is None else total + layer.bias


def observe(evidence: Evidence) -> str | None:
    """Return matrix products per linear layer and pass, as the profiler counted them."""
    products = len(evidence.shapes("aten::mm")) + len(evidence.shapes("aten::addmm"))
    expected = evidence.linear_layers * evidence.profiled_launches
    return str(products // expected) if expected and products % expected == 0 else None
