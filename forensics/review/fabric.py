"""Where the steps of several ranks went, and who or what held them up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.markup import bullets, table
from forensics.text import code, markdown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.communicators import Communicator
    from forensics.explanation import Explanation

MOST = 8
"""Communicators of an arm that are shown."""


def fabric(explanation: Explanation) -> Iterator[str]:
    """Compute, transfer and waiting of each communicator; nothing where no collective is on record."""
    known = [(arm, one) for arm, comms in explanation.fabric.items() for one in comms[:MOST]]
    if not known:
        return
    yield "## What did the ranks wait for?"
    heads = ["arm", "ranks", "engine steps", "compute", "transfer", "waiting", "skew p50 / p95 / p99", "fabric regime"]
    yield table(heads, [_row(arm, one) for arm, one in known])
    yield (
        "Milliseconds over these steps: compute of the median rank; transfer, the shortest duration of each call; what "
        "the latest rank adds. All from durations on one rank's clock: no clock is compared with another."
    )
    yield bullets(f"{arm}, {code(one.comm_id)}: {markdown(one.verdict, 600)}. {_wire(one)}" for arm, one in known)


def _row(arm: str, one: Communicator) -> list[str]:
    skew = " / ".join(f"{value:.3g}" for value in one.skew_ms.values()) or "not on record"
    spans = [f"{span.state} {span.first} to {span.last}" for span in one.spans[:6]]
    return [
        arm, str(one.ranks), f"{one.first} to {one.last}", f"{one.compute_ms:.4g}", f"{one.transfer_ms:.4g}",
        f"{one.sync_ms:.4g}", skew, ", ".join(spans) + (", …" if len(one.spans) > 6 else ""),
    ]  # fmt: skip


def _wire(one: Communicator) -> str:
    """Return what the wire does for a message: latency and bandwidth where sizes are enough, or that they are not."""
    fitted = {fit.op for fit in one.fits}
    said = [
        f"{code(fit.op)} takes {fit.alpha_ms:.3g} ms "
        + ("whatever its size" if fit.bytes_per_s is None else f"plus its bytes at {fit.bytes_per_s / 1e9:.3g} GB/s")
        + f" (line through {fit.sizes} sizes)"
        for fit in one.fits
    ]
    said += [f"{code(op)}: too few message sizes for a line" for op in one.bandwidth if op not in fitted]
    said += [f"{code(op)} reached {rate:.3g} GB/s on the bus" for op, rate in one.bandwidth.items()]
    return "; ".join(said) + "." if said else ""
