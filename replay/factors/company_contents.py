"""What the other requests of the engine say: their own ids, or random ones of equal length and sharing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.engines.vllm_setup import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Let the others say this."""
    setup.contents = value
    yield


def observe(evidence: Evidence) -> str | None:
    """Return 'recorded' where every other request has the recorded hash of ids, 'random' where none has.

    A random prompt of a few tokens that are all shared with the target has the recorded hash too; it does not count.
    """
    asked = {one.req_id: one for _, one in evidence.company.requests() if one.req_id != evidence.company.target}
    equal = [sha256 == asked[name].token_ids_sha256 for name, _, _, sha256 in evidence.arrived if name in asked]
    if equal and all(equal):
        return "recorded"
    return None if any(equal) else "random"
