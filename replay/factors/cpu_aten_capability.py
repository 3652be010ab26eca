"""ATen vector instruction set. Read once by the library: the process starts with it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replay.factors import Evidence, Setup, Unpinnable


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Check that the process was started with it, and that torch took it."""
    if os.environ.get("ATEN_CPU_CAPABILITY") != value:
        raise Unpinnable(f"cpu.aten_capability={value}: this process was not started with it")
    if torch.backends.cpu.get_cpu_capability().lower() != value:
        raise Unpinnable(f"cpu.aten_capability={value}: this CPU or build has not got it")
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the instruction set that torch reports in its build and run-time summary."""
    found = re.search(r"CPU capability usage: (.+)", evidence.report)
    return {"NO AVX": "default"}.get(found[1], found[1].lower()) if found else None
