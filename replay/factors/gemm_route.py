"""Route of the linear layers to the library: torch's own, mm on a contiguous transposed weight, or bmm of one batch.

The library sees other layouts and takes other kernels: seen with oneDNN on AMX, where mm and bmm never split K.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replay.factors import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Let every linear layer take the route."""
    transposed: dict[int, torch.Tensor] = {}

    def mm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        columns = transposed.setdefault(weight.data_ptr(), weight.t().contiguous())
        out = torch.mm(x.reshape(-1, x.shape[-1]), columns).reshape(*x.shape[:-1], -1)
        return out if bias is None else out + bias

    def bmm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out = torch.bmm(x.reshape(1, -1, x.shape[-1]), weight.t()[None]).reshape(*x.shape[:-1], -1)
        return out if bias is None else out + bias

    for role in {role for role, _ in setup.linear_layers()} if value != "linear" else ():
        setup.set_kernel(role, mm if value == "mm" else bmm, f"gemm.route={value}")
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the route from the operators inside of the linear layers."""
    routes = {_route(call.operators) for call in evidence.calls}
    return routes.pop() if len(routes) == 1 else None


def _route(operators: frozenset[str]) -> str | None:
    if "aten::linear" in operators:
        return "linear"
    return "bmm" if "aten::bmm" in operators else "mm" if "aten::mm" in operators else None
