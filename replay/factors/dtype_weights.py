"""Compute dtype of the weights; the model is loaded in it."""

from collections.abc import Iterator
from contextlib import contextmanager

from replay.factors import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Take the model in this dtype. Comes before all pins that touch the model."""
    setup.model = setup.load(value)
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the dtype of the final hidden state, which all layers before the output head have worked on."""
    return evidence.hidden_dtype
