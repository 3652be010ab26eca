"""Lengths of the passes that the prompt is cut into."""

from collections.abc import Iterator
from contextlib import contextmanager

from replay.factors import PROFILED_PASSES, Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Ask for the cuts; whether they fit the prompt is checked when the launch is built."""
    setup.chunks = tuple(int(length) for length in value.split(","))
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the widths of the ids that reached the embedding, up to the pass that gave the first token.

    In packed launches: the request's own tokens in each, from the lengths that reached the model.
    """
    if evidence.packed:
        return ",".join(map(str, _own_pieces(evidence))) or None
    widths = [shapes[1][1] for shapes in evidence.shapes("aten::embedding")]
    later = min(len(evidence.launches), PROFILED_PASSES) - 1
    prompt = widths[: len(widths) - later] if later else widths
    return ",".join(map(str, prompt)) or None


def _own_pieces(evidence: Evidence) -> list[int]:
    """Return the request's tokens in each launch, up to the one that completed its prompt."""
    found: list[int] = []
    for launch in evidence.packed:
        if launch.own is None:
            continue
        tokens, computed = launch.rows[launch.own]
        found.append(tokens)
        if computed + tokens >= len(evidence.target):
            break
    return found
