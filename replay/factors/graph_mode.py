"""Eager, compiled, or in captured graphs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from replay.factors import Unpinnable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.engines.vllm_setup import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Build the engine eager, or compiled without graphs."""
    if value not in ("eager", "compiled"):
        raise Unpinnable(f"graph.mode={value}: this version builds engines eager or compiled, it captures no graphs")
    setup.settings["enforce_eager"] = value == "eager"
    if value == "compiled":
        setup.settings["compilation_config"] = {"cudagraph_mode": "NONE"}
    yield


def observe(evidence: Evidence) -> str | None:
    """Return whether compiled code took the place of a part of the model."""
    return evidence.built.get("graph.mode")
