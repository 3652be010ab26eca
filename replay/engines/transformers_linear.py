"""The linear layers of a model for the time of a trial: other kernels, and other row counts M, than they would have."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from replay.factors import Setup, Unpinnable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Product = Callable[..., torch.Tensor]


class Passes:
    """Which pass of the model runs: 0 is the prompt's."""

    def __init__(self) -> None:
        self.number = -1

    def next(self, *_: Any) -> None:
        """Count one more."""
        self.number += 1


@contextmanager
def forced(setup: Setup) -> Iterator[None]:
    """Give the linear layers the kernels and row counts of the setup for the block."""
    passes = Passes()
    with ExitStack() as stack:
        if setup.kernels or setup.gemm_rows:
            stack.callback(setup.model.register_forward_pre_hook(passes.next).remove)
        for role, layer in setup.linear_layers():
            wanted = setup.gemm_rows.get((role or "", 0)), setup.gemm_rows.get((role or "", 1))
            if role in setup.kernels or wanted != (None, None):
                kernel = setup.kernels.get(role, torch.nn.functional.linear)
                layer.forward = Linear(layer, kernel, passes, wanted, setup)
                stack.callback(delattr, layer, "forward")
        yield


@dataclass(frozen=True)
class Linear:
    """What a linear layer computes instead of its own forward. wanted: M in the prompt's pass and in later ones."""

    layer: Any
    kernel: Product
    passes: Passes
    wanted: tuple[int | None, int | None]
    setup: Setup

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x·Wᵀ + b for x [rows, tokens, K]."""
        m = self.wanted[min(self.passes.number, 1)]
        product = partial(self.kernel, weight=self.layer.weight, bias=self.layer.bias)
        if m is None or m == x.shape[0] * x.shape[1]:
            return product(x)
        own = slice(self.setup.left_pad, self.setup.left_pad + self.setup.prompt) if x.shape[1] > 1 else slice(None)
        return at_rows(product, x, m, (self.setup.row, own))


def at_rows(product: Product, x: torch.Tensor, m: int, own: tuple[int, slice]) -> torch.Tensor:
    """Return the product of x [rows, tokens, K] with the request's own part computed in a GEMM of exactly `m` rows.

    More rows than the launch has: zeros are added. Fewer: the whole launch runs as it is, and the request's own tokens
    once more, filled up with zeros to `m`; their result takes the place of the first. own: its row and its real tokens.
    """
    total, mine = x.shape[0] * x.shape[1], x[own]
    if m < mine.shape[0]:
        raise Unpinnable(f"gemm rows: M of {m} is below the {mine.shape[0]} tokens that the request has in the pass")
    if m >= total:
        return product(filled(x.reshape(total, -1), m))[:total].reshape(*x.shape[:-1], -1)
    whole = product(x)
    whole[own] = product(filled(mine, m))[: mine.shape[0]]
    return whole


def filled(x: torch.Tensor, m: int) -> torch.Tensor:
    """Return x [n, K] with zero rows added up to `m`."""
    return torch.cat([x, x.new_zeros(m - x.shape[0], x.shape[1])])
