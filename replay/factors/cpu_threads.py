"""Intra-op threads of torch. On a CPU they move the thresholds at which kernels change."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replay.factors import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Set the number of threads for the block."""
    previous = torch.get_num_threads()
    torch.set_num_threads(int(value))
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def observe(evidence: Evidence) -> str | None:
    """Return what the OpenMP runtime says of itself in torch's report."""
    found = re.search(r"omp_get_max_threads\(\) : (\d+)", evidence.report)
    return found[1] if found else None
