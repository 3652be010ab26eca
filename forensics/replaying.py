"""Start `python -m replay` on a case, with whichever interpreter has torch, and hand back its verdict file.

The proof itself is `replay`'s; this module only launches it and names files. Names of files never come from a log.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from replay.case import Case


@dataclass(frozen=True)
class Replayed:
    """A verdict on file: where, what it says, and the exit code that its outcome asks for."""

    path: Path
    document: dict[str, Any]
    exit_code: int


def write_case(case: Case, path: Path) -> None:
    """Write a case where the user (or the store's folder) wants it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(case.to_json(), encoding="utf-8")
    except OSError as fault:
        raise ForensicsError(f"{path}: cannot write: {fault.strerror}", 3, "choose another -o") from None


def replay(case: Case, folder: Path, python: str, arguments: Sequence[str]) -> Replayed:
    """Write the case into `folder`, run the proof, return its verdict. Progress goes to stderr as it happens."""
    stem = case.sha256()[:12]
    case_path, fresh = folder / f"case-{stem}.json", folder / f".verdict-{stem}-{os.getpid()}.json"
    write_case(case, case_path)
    if shutil.which(python) is None:
        raise ForensicsError(
            f"{python}: no such interpreter", 2, "--python takes an interpreter that has torch and the engine"
        )
    kept = ["--journal", str(folder / f".trials-{stem}.jsonl")]  # one name a case: a second run goes on from it
    command = [sys.executable, "-m", "replay", str(case_path), "-o", str(fresh), "--python", python, *kept, *arguments]
    child = subprocess.run(command, check=False)
    if not fresh.exists():
        code = child.returncode if child.returncode in (2, 3, 4, 130) else 3
        hint = (
            ""
            if code == 2
            else f"the case is at {case_path}; to run it elsewhere: python -m replay {case_path.name} -o verdict.json"
        )
        raise ForensicsError("the replay gave no verdict (its own message is above)", code, hint)
    content = fresh.read_bytes()
    verdict_path = folder / f"verdict-{stem}-{hashlib.sha256(content).hexdigest()[:8]}.json"
    fresh.replace(verdict_path)  # a verdict is evidence: another one never takes its place
    return Replayed(verdict_path, json.loads(content), child.returncode)
