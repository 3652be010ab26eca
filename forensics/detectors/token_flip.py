"""The first output token that differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.OUTPUT
SEEN = "real engine"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """State the flip; where only the hashes of the outputs differ, say what is missing to find it."""
    target, reference = incident.arms()
    flip = incident.flip
    if flip is None:
        yield Finding(
            "token_flip", RUNG, "the outputs differ, at a position that is not on record", len(target.steps),
            citations=target.cite() + reference.cite(),
        )  # fmt: skip
        yield Gap("token_flip", "step.token_id or step.token_tag", "at which token the outputs part")
        return
    yield Finding(
        "token_flip", RUNG,
        f"output token {flip.token_index} is {flip.target_token}, in the reference {flip.reference_token}",
        flip.target_step if flip.target_step is not None else len(target.steps),
        flip.target_token, flip.reference_token,
        citations=target.cite(flip.target_step) + reference.cite(flip.reference_step),
    )  # fmt: skip
