"""Trials that have run, one JSON line each beside the verdict: an interrupted proof goes on where it stopped.

A line counts only for the same case, treatment, weights and host facts, so a journal of something else does no harm.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from replay import __version__
from replay.trial import Trace, trace_from

if TYPE_CHECKING:
    from pathlib import Path

    from replay.case import Case
    from replay.trial import Treatment


class Journal:
    """The lines of one file; made at the first trial and removed when the verdict is written. OSError when it fails."""

    def __init__(self, path: Path, weights_sha256: str | None) -> None:
        self.path, self._weights = path, weights_sha256
        self._known = _read(path)
        self.reused = 0

    def find(self, case: Case, treatment: Treatment, host: dict[str, Any]) -> Trace | None:
        """Return what this very trial showed on this very machine, if it is on file."""
        known = None if treatment.repeat else self._known.get(self._key(case, treatment, host))
        if known is None:
            return None
        self.reused += 1
        return trace_from(known, host)

    def keep(self, case: Case, treatment: Treatment, trace: Trace) -> None:
        """Add a trial that gave an answer. One that failed may do better the next time."""
        if trace.failed or treatment.repeat:
            return
        document = asdict(trace)
        line = {"key": self._key(case, treatment, document.pop("host")), "trace": document}
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(line))  # in front, so that a torn line does not spoil the next one

    def remove(self) -> None:
        """Forget everything: the verdict holds it now."""
        self.path.unlink(missing_ok=True)

    def _key(self, case: Case, treatment: Treatment, host: dict[str, Any]) -> str:
        parts = [__version__, case.sha256(), treatment.key(), self._weights, host]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    known: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            document = json.loads(line)
            trace_from(document["trace"], {})
            known[str(document["key"])] = document["trace"]
        except (ValueError, TypeError, KeyError):
            continue  # torn by the end of the process that wrote it
    return known
