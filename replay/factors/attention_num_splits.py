"""Parts that the keys of attention are cut into: an argument of flash packages (flash_attn_interface), not of torch.

It needs attention.backend at one of those packages. Without it their heuristic decides, by the batch.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING

from replay.factors import Evidence, Setup, Unpinnable

if TYPE_CHECKING:
    from collections.abc import Iterator

FUNCTIONS = ("_flash_fn", "_flash_varlen_fn")
"""Where transformers keeps the package's functions: for rows of one length, and for padded ones."""


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Give the argument to every call of the package for the block."""
    name = f"attention.num_splits={value}"
    if setup.model.device.type != "cuda":
        raise Unpinnable(f"{name}: needs a CUDA device")
    used = setup.model.config._attn_implementation
    if not str(used).startswith("flash_attention_"):
        raise Unpinnable(f"{name}: {used} attention has no such argument; pin attention.backend=flash_attention_3 too")
    with given(value, str(used)):
        yield


@contextmanager
def given(value: str, implementation: str) -> Iterator[None]:
    """Let transformers call the package's functions with num_splits. Raises Unpinnable where they take none."""
    from transformers import modeling_flash_attention_utils as flash

    flash.lazy_import_flash_attention(implementation)
    originals = {place: getattr(flash, place) for place in FUNCTIONS}
    without = [place for place, one in originals.items() if "num_splits" not in inspect.signature(one).parameters]
    if without:
        raise Unpinnable(
            f"attention.num_splits={value}: {implementation} of this environment takes no num_splits "
            f"in {getattr(originals[without[0]], '__name__', without[0])}"
        )
    try:
        for place, one in originals.items():
            setattr(flash, place, functools.partial(one, num_splits=int(value)))
        yield
    finally:
        for place, one in originals.items():
            setattr(flash, place, one)


def observe(evidence: Evidence) -> str | None:
    """Return the argument num_splits of the attention operator, as the profiler recorded it at every call."""
    return str(evidence.splits[0]) if len(set(evidence.splits)) == 1 else None
