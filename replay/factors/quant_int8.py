"""Weights rounded to int8, one scale a row: the fused kernel, or the weights scaled back first and an ordinary GEMM.

Both compute the same formula in another order of rounding. The rounding itself is done here, from the weights as
loaded; whose own int8 weights are meant, this is not the place.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replay.factors import Evidence, Setup, Unpinnable

OPERATOR = "aten::_weight_int8pack_mm"


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Round the weights of every layer with a role, except the output head, and compute with them."""
    roles = {role for role, _ in setup.linear_layers() if role not in (None, "lm_head")}
    if not roles:
        raise Unpinnable(f"quant.int8={value}: the model has no projection under a name that we know")
    if setup.model.device.type != "cpu":
        raise Unpinnable(f"quant.int8={value}: the fused kernel of this torch is for a CPU")
    packed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if weight.data_ptr() not in packed:
            scales = (weight.abs().amax(1) / 127).clamp(min=1e-12)
            packed[weight.data_ptr()] = (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales
        return packed[weight.data_ptr()]

    def fused(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]).contiguous(), *rounded(weight))
        out = out.reshape(*x.shape[:-1], -1)
        return out if bias is None else out + bias

    def dequantised(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        whole, scales = rounded(weight)
        return torch.nn.functional.linear(x, whole.to(x.dtype) * scales[:, None], bias)

    for role in roles if value != "off" else ():
        setup.set_kernel(role, fused if value == "fused" else dequantised, f"quant.int8={value}")
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the path from the operators inside of the projections: the fused kernel, a scaling, or neither."""
    calls = [call for call in evidence.calls if call.role not in (None, "lm_head")]
    paths = {_path(call.operators) for call in calls}
    return paths.pop() if len(paths) == 1 else None


def _path(operators: frozenset[str]) -> str:
    if OPERATOR in operators:
        return "fused"
    return "dequantise_first" if {"aten::mul", "aten::to"} <= operators else "off"
