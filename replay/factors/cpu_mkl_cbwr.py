"""MKL's conditional numerical reproducibility. Read once by the library: the process starts with it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replay.factors import Evidence, Setup, Unpinnable


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Check that the process was started with it."""
    if not torch.backends.mkl.is_available():
        raise Unpinnable(f"cpu.mkl_cbwr={value}: this torch is built without MKL")
    if os.environ.get("MKL_CBWR") != value:
        raise Unpinnable(f"cpu.mkl_cbwr={value}: this process was not started with it")
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the mode that MKL prints with an fp32 product; on a CPU that it does not know it falls back to AUTO."""
    found = re.search(r"CNR:(\S+)", evidence.verbose)
    return found[1] if found else None
