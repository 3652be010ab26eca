"""Highest instruction set that oneDNN may use. Read once by the library: the process starts with it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from replay.factors import Evidence, Setup, Unpinnable

NAMES = (("AMX", "AVX512_CORE_AMX"), ("float16", "AVX512_CORE_FP16"), ("BF", "AVX512_CORE_BF16"),
         ("AVX-512", "AVX512_CORE"), ("AVX2", "AVX2"))  # fmt: skip
"""Words in oneDNN's description of an instruction set, the most special first; BF for bfloat16."""


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Check that the process was started with it."""
    if value == "DEFAULT":
        raise Unpinnable("cpu.onednn_isa=DEFAULT: name the instruction set itself, so that it can be read back")
    if os.environ.get("ONEDNN_MAX_CPU_ISA") != value:
        raise Unpinnable(f"cpu.onednn_isa={value}: this process was not started with it")
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the set that oneDNN says it uses."""
    found = re.search(r"info,cpu,isa:(.+)", evidence.verbose)
    words = re.sub("bfloat16", "BF", found[1]) if found else ""
    return next((name for word, name in NAMES if word in words), None)
