"""What a recording keeps, as the environment says it. Reads settings and words them; keeps nothing itself."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from replay import segments

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

TRIGGERS: Final = ("thin_margin", "preemption", "regime", "signal")
USUAL_TRIGGERS: Final[tuple[str, ...]] = TRIGGERS[1:]
"""All but thin margins: in bf16 some token of every second is that thin (docs/recording.md)."""
COMPRESS: Final = ("auto", "zstd", "gzip", "none")
COMPRESS_ALLOWED: Final = "one of auto, zstd (where the module zstandard is installed), gzip, none"


@dataclass(frozen=True)
class Policy:
    """How a recording is cut into files, and which engine steps it keeps. None: without limit, or off.

    sample: keep one engine step in so many. ring_s: keep steps in memory for so long, and on disk only around
    a trigger. Sizes are MiB on disk, times are seconds.
    """

    compress: str = "none"
    segment_mb: float = 64.0
    segment_s: float = 3600.0
    keep_mb: float | None = None
    keep_s: float | None = None
    ring_s: float | None = None
    triggers: tuple[str, ...] = ()
    sample: int = 1

    @classmethod
    def from_environment(cls) -> Policy:
        """Return the policy that FORENSICS_RECORD_* asks for. A malformed value is said, and its default holds."""
        ring_s = _read("RING_S", None, _number_or_off, "seconds above 0, or off")
        triggers = _read("TRIGGERS", USUAL_TRIGGERS, _triggers, f"a comma list of {', '.join(TRIGGERS)}")
        return cls(
            compress=_read("COMPRESS", segments.best(), _compress, COMPRESS_ALLOWED),
            segment_mb=_read("SEGMENT_MB", cls.segment_mb, _above_zero, "MiB above 0"),
            segment_s=_read("SEGMENT_S", cls.segment_s, _above_zero, "seconds above 0"),
            keep_mb=_read("KEEP_MB", None, _number_or_off, "MiB above 0, or off"),
            keep_s=_read("KEEP_S", None, _number_or_off, "seconds above 0, or off"),
            ring_s=ring_s,
            triggers=triggers if ring_s else (),
            sample=_read("SAMPLE", cls.sample, _count, "a whole number from 1"),
        )

    def facts(self) -> dict[str, Any]:
        """Return the policy as the engine record's field `recording`; what is off is absent."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}


def say(message: str) -> None:
    """Say something about the recording on stderr, the server's own log, if there still is one."""
    with contextlib.suppress(OSError, ValueError):
        print(f"forensics: {message}", file=sys.stderr, flush=True)


def _read(name: str, default: T, parse: Callable[[str], T], allowed: str) -> T:
    text = os.environ.get(f"FORENSICS_RECORD_{name}", "").strip()
    if not text:
        return default
    try:
        return parse(text)
    except ValueError:
        shown = "off" if default is None else ",".join(default) if isinstance(default, tuple) else default
        say(f"FORENSICS_RECORD_{name}={text!r} is not {allowed}; recording goes on with {shown}")
        return default


def _above_zero(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(text)
    return value


def _number_or_off(text: str) -> float | None:
    return None if text == "off" else _above_zero(text)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _compress(text: str) -> str:
    if text not in COMPRESS or (text == "zstd" and segments.best() != "zstd"):
        raise ValueError(text)
    return segments.best() if text == "auto" else text


def _triggers(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names or set(names) - set(TRIGGERS):
        raise ValueError(text)
    return tuple(name for name in TRIGGERS if name in names)
