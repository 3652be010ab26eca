"""How the token is taken from the logits: on a tie two rules take two tokens."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replay.factors import Evidence, Setup, Unpinnable


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Leave argmax alone, or let topk decide before it."""
    if value == "sample":
        raise Unpinnable("token.rule=sample: the state of the random generator is not on record")
    if value == "topk0":
        setup.processors.append(topk_decides)
    yield


def topk_decides(_input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Leave only the token that topk puts first."""
    first = scores.topk(2, dim=-1).indices[:, :1]
    return torch.full_like(scores, float("-inf")).scatter(-1, first, 0.0)


def observe(evidence: Evidence) -> str | None:
    """Return the rule from the operators that ran."""
    names = {name for name, _ in evidence.operators}
    if "aten::multinomial" in names:
        return "sample"
    if "aten::topk" in names:
        return "topk0"
    return "argmax" if "aten::argmax" in names else None
