"""Real executions whose cause is known: the recorded incidents, and what tools/label_real.py recorded.

`fixtures/incidents/*/expected.json` states pairs with the cause that was provoked. `labels.json` in a folder of
labelled executions states {request, against, roots, set}: what was set, and the answers that are right for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """One question about a real log, and what is right. source: recorded or labelled; cause: what was set."""

    source: str
    log: Path
    request: str
    against: str | None
    roots: tuple[str, ...]
    cause: str


def recorded(incidents: Path) -> Iterator[Pair]:
    """Yield the pairs of the committed incidents."""
    for path in sorted(incidents.glob("*/expected.json")):
        for one in json.loads(path.read_text(encoding="utf-8")):
            log = path.parent / "log"
            yield Pair("recorded", log, one["request"], one["against"], (one["root_cause"],), one["root_cause"])


def labelled(folder: Path) -> Iterator[Pair]:
    """Yield the pairs of every folder below that has a labels.json beside its log."""
    for path in sorted(folder.glob("**/labels.json")):
        for one in json.loads(path.read_text(encoding="utf-8")):
            log = path.parent / "log"
            yield Pair("labelled", log, one["request"], one["against"], tuple(one["roots"]), one["set"])
