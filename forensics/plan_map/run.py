"""Start `python -m replay.plan_map` with whichever interpreter has the engine, and hand back its document."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from forensics.errors import BAD_INPUT, INCONCLUSIVE, USAGE, ForensicsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def make(model: Path, engine: str, python: str, rows: int, tokens: int, prompts: Sequence[int]) -> dict[str, Any]:
    """Return the map document. Progress goes to stderr as it happens. Raises ForensicsError when there is none."""
    if not (model / "config.json").is_file():
        raise ForensicsError(f"{model}: holds no config.json", BAD_INPUT, "MODEL is the folder of a model")
    if shutil.which(python) is None:
        raise ForensicsError(
            f"{python}: no such interpreter", USAGE, "--python takes an interpreter that has the engine"
        )
    words = ["--engine", engine, "--python", python, "--rows", str(rows), "--tokens", str(tokens)]
    words += [word for length in prompts for word in ("--prompt-tokens", str(length))]
    done = subprocess.run(
        [sys.executable, "-m", "replay.plan_map", str(model), *words], check=False, stdout=subprocess.PIPE
    )
    if done.returncode:
        code = done.returncode if done.returncode in (USAGE, BAD_INPUT, INCONCLUSIVE, 130) else INCONCLUSIVE
        raise ForensicsError("there is no map (the reason is above)", code)
    document: dict[str, Any] = json.loads(done.stdout)
    return document
