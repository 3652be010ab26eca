"""Compute dtype of the output head: hidden state and weights are converted before the product, logits stay in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replay.factors import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Let the output head compute in this dtype."""
    setup.layers_of("lm_head")
    dtype: torch.dtype = getattr(torch, value)
    converted: dict[int, torch.Tensor] = {}

    def head(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        columns = converted.setdefault(weight.data_ptr(), weight.to(dtype))
        return torch.nn.functional.linear(x.to(dtype), columns, None if bias is None else bias.to(dtype))

    if dtype != setup.model.dtype:
        setup.set_kernel("lm_head", head, f"dtype.lm_head={value}")
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the dtype in which logits left the model."""
    return str(evidence.launches[0].logits.dtype).removeprefix("torch.")
