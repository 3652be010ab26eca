"""Start `python -m replay --doctor` with whichever interpreter has torch, and hand back what it found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

from forensics.errors import ForensicsError

COLUMNS = ("factor", "value", "scope", "answer", "detail")


def examine(python: str, model: str | None) -> list[dict[str, Any]]:
    """Return one object a factor and value, with COLUMNS as keys. Progress goes to stderr as it happens."""
    if shutil.which(python) is None:
        raise ForensicsError(f"{python}: no such interpreter", 2, "--python takes an interpreter that has torch")
    command = [sys.executable, "-m", "replay", "--doctor", "--python", python, *(["--model", model] if model else [])]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE)
    if done.returncode:
        code = done.returncode if done.returncode in (2, 3, 4, 130) else 3
        raise ForensicsError("the factors could not be tried (the reason is above)", code)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
