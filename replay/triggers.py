"""When something worth a full recording happens: what one record says, against what the one before it said.

Four triggers, each for one way in which an incident shows. They read contract fields and know no engine.
"""

from __future__ import annotations

import math
import signal
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SIGNIFICAND_BITS: Final = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
THIN_ULPS: Final = 1.0
"""Flips on a real engine were seen at a top-2 gap of 0 or 1 ulp. How many tokens are that thin: docs/recording.md."""
LOW_MEMORY_MB: Final = 1024.0
"""Free memory under which the regime is `memory_pressured`, counted as there (docs/regimes.md)."""

Fired = tuple[str, dict[str, Any]]


class Triggers:
    """Reads the records of one run in order and says which triggers they pull. Only those in `names` are looked at."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._paging = self._low = False

    def pulled(self, record: Mapping[str, Any]) -> Iterator[Fired]:
        """Yield the name of each trigger that this record pulls, and the facts it was pulled by."""
        kind = record["kind"]
        if kind == "step":
            if "thin_margin" in self._names and (ulps := margin_ulps(record)) is not None and ulps <= THIN_ULPS:
                yield "thin_margin", {"margin": record["margin"], "ulps": ulps}
            if "preemption" in self._names and record.get("preempted"):
                yield "preemption", {"resumed": bool(record.get("resumed"))}
        elif kind == "batch" and "regime" in self._names:
            yield from self._regime(record)
        elif kind == "event":
            if "preemption" in self._names and record.get("what") == "preemption":
                yield "preemption", {}
            if "signal" in self._names and record.get("what") == "signal":
                yield "signal", dict(record.get("detail") or {})

    def _regime(self, batch: Mapping[str, Any]) -> Iterator[Fired]:
        """A regime is entered once: a run that begins under pressure pulls the trigger at its first step only."""
        paging = bool(batch.get("paging_on"))
        free = min((batch[name] for name in ("headroom_mb", "vram_free_mb") if name in batch), default=math.inf)
        low = free < LOW_MEMORY_MB
        if paging and not self._paging:
            yield "regime", {"paging_on": True}
        if low and not self._low:
            yield "regime", {"free_mb": free, "threshold_mb": LOW_MEMORY_MB}
        self._paging, self._low = paging, low


def margin_ulps(step: Mapping[str, Any]) -> float | None:
    """Return a step's margin in ulps of its highest logit, or None where margin, logits or dtype are not known.

    ulp(z) = 2^(floor(log2 |z|) - p + 1) with p significand bits of the dtype before any cast.
    """
    margin, logits, bits = step.get("margin"), step.get("top_logits"), SIGNIFICAND_BITS.get(step.get("logit_dtype", ""))
    if margin == 0:
        return 0.0
    if margin is None or not logits or not logits[0] or bits is None:
        return None
    return float(abs(margin) / math.ldexp(1.0, math.frexp(logits[0])[1] - bits))


def signal_obstacle() -> str | None:
    """Return why this thread cannot have a signal handled, or None when it can."""
    if threading.current_thread() is not threading.main_thread():
        return "the recorder was started outside of the main thread, and only that may handle signals"
    if signal.getsignal(signal.SIGUSR2) is None:
        return "it is handled by code that is not Python and cannot be called after ours"
    return None


def on_signal(write: Callable[[], None]) -> None:
    """Call `write` at SIGUSR2, and then whatever handled it before."""
    before = signal.getsignal(signal.SIGUSR2)

    def handler(number: int, frame: Any) -> None:
        write()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGUSR2, handler)
