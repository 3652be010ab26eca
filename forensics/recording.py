"""Run a command with the recorder on, and say loudly when no recorder reported in.

The recorders live in `replay.engines` and load themselves: vLLM through its plugin entry point, transformers
through a `sitecustomize` that this module puts on the child's path. Nothing is imported here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Recording:
    """What a recorded command left: its exit code, the files written, records by kind, and what was lost.

    exit_code: as a shell gives it, 128 + n after signal n. requests: how many requests the records are about.
    """

    exit_code: int
    files: tuple[Path, ...]
    records: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    dropped: int = 0
    faults: int = 0

    @property
    def reported(self) -> bool:
        """Return whether an engine's recorder wrote its engine record."""
        return self.records["engine"] > 0


def record(command: Sequence[str], directory: Path, *, with_ids: bool, replica: str | None) -> Recording:
    """Run the command until it ends, hand signals on, and count what its recorders wrote."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        before = set(directory.iterdir())
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"\n")
    except OSError as fault:
        raise ForensicsError(
            f"{directory}: cannot write a recording there: {fault.strerror}", 3, "choose another --out"
        ) from None
    try:
        child = subprocess.Popen(list(command), env=environment(directory, with_ids=with_ids, replica=replica))
    except OSError as fault:
        raise ForensicsError(
            f"cannot start {command[0]!r}: {fault.strerror}", 3, "check the command after --"
        ) from None
    files = (path for path in _wait(child, directory) if path not in before and path.suffix == ".jsonl")
    code = child.returncode
    return _summary(code if code >= 0 else 128 - code, tuple(sorted(files)))


def environment(directory: Path, *, with_ids: bool, replica: str | None) -> dict[str, str]:
    """Return the child's environment: where to record, and the folder that loads the transformers recorder."""
    spec = find_spec("replay")
    if spec is None or spec.origin is None:
        raise ForensicsError("the package `replay` is not installed", 3, "install inference-forensics again")
    autoload = str(Path(spec.origin).parent / "autoload")
    path = [autoload, *filter(None, [os.environ.get("PYTHONPATH")])]
    changed = {"FORENSICS_RECORD": str(directory.resolve()), "PYTHONPATH": os.pathsep.join(path)}
    if with_ids:
        changed["FORENSICS_RECORD_IDS"] = "1"
    if replica:
        changed["FORENSICS_REPLICA"] = replica
    return os.environ | changed


def _wait(child: subprocess.Popen[bytes], directory: Path) -> list[Path]:
    """Wait for the child; SIGTERM is handed on, SIGINT reaches it by itself (same process group)."""
    previous = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        while True:
            try:
                child.wait()
                break
            except KeyboardInterrupt:
                continue  # the child got it too and decides when to end; a second one reaches it as well
    finally:
        signal.signal(signal.SIGTERM, previous)
    time.sleep(0.3)  # engine processes of a server may close their file a moment after it
    return list(directory.iterdir())


def _summary(exit_code: int, files: tuple[Path, ...]) -> Recording:
    records: Counter[str] = Counter()
    requests: set[tuple[str, str]] = set()
    dropped = faults = 0
    for path in files:
        with path.open("rb") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # a torn last line; ingest will report it
                records[entry.get("kind", "?")] += 1
                if "req_id" in entry:
                    requests.add((entry.get("run_id", ""), entry["req_id"]))
                if entry.get("what") == "drops":
                    dropped = max(dropped, int(entry["detail"]["dropped"]))
                faults += entry.get("what") == "recorder_fault"
    return Recording(exit_code, files, records, len(requests), dropped, faults)
