"""A raw log in memory, as lines: what a baseline may look at."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Record = dict[str, Any]


@dataclass
class Log:
    """Records by kind. A step stands with the launch of its lowest rank, where one is on record."""

    kinds: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))

    def request(self, name: str) -> Record:
        """Return the request record, by either id; the first where there are several."""
        named = (one for one in self.kinds["request"] if name in (one["req_id"], one.get("external_req_id")))
        return next(named, {"req_id": name})

    def engine(self, run_id: str) -> Record:
        """Return what the run says of itself, its parts together."""
        parts = [one for one in self.kinds["engine"] if one["run_id"] == run_id]
        return {name: value for one in parts for name, value in one.items()}

    def steps(self, request: Record) -> list[Record]:
        """Return the steps of a request in order, each with the fields of its launch."""
        run, name = request.get("run_id"), request["req_id"]
        own = [one for one in self.kinds["step"] if one["req_id"] == name and one.get("run_id") == run]
        launches = {one["engine_step"]: one for one in reversed(self.kinds["batch"]) if one["run_id"] == run}
        return [launches.get(one.get("engine_step", -1), {}) | one for one in sorted(own, key=lambda one: one["step"])]


def read(folder: Path) -> Log:
    """Read every JSONL file of a folder; a line that is no JSON object is passed over."""
    log = Log()
    for path in sorted(folder.rglob("*.jsonl*")):
        for one in _lines(path):
            log.kinds[one.get("kind", "")].append(one)
    return log


def _lines(path: Path) -> Iterator[Record]:
    written = path.read_bytes()
    for line in (gzip.decompress(written) if path.suffix == ".gz" else written).splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if isinstance(one, dict):
            yield one
