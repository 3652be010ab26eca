"""The two runs decoded under different output-affecting configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.findings import ADMISSION, Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.WORKLOAD
SEEN = "real engine"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare the applied decode configuration key by key."""
    target, reference = incident.arms()
    if None in (target.request["decode_cfg_applied"], reference.request["decode_cfg_applied"]):
        yield Gap("decode_config_drift", "decode_cfg_applied", "whether both runs decoded under the same configuration")
        return
    ours, theirs = target.decode_cfg(), reference.decode_cfg()
    changed = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if changed:
        listed = ", ".join(f"{key} {ours.get(key)!r} against {theirs.get(key)!r}" for key in changed)
        yield Finding(
            "decode_config_drift", RUNG, f"decode configuration differs: {listed}", ADMISSION,
            {key: ours.get(key) for key in changed}, {key: theirs.get(key) for key in changed},
            citations=target.cite() + reference.cite(),
        )  # fmt: skip
