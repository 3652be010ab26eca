"""Another interpreter, in which this package need not be installed: set it up for a recording, and say what it has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import BAD_INPUT, ForensicsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROBE = "replay.engines"
"""The module that says, run in that interpreter, what the recorder finds there."""
PROBE_SECONDS = 120
PLAIN = ("python", "python3")


def find(name: str) -> Path:
    """Return the path of an interpreter, named by path or as on PATH. A link stays one: it is how a venv is known."""
    found = shutil.which(name)
    if found is None:
        raise ForensicsError(
            f"--python {name}: no such interpreter", BAD_INPUT, "name the server's, as in /srv/venv/bin/python"
        )
    return Path(found).absolute()


def activated(python: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which the scripts beside the interpreter come first, as in an activated venv."""
    path = [str(python.parent), *filter(None, [environment.get("PATH")])]
    return {**environment, "PATH": os.pathsep.join(path)}


def command_under(python: Path, command: Sequence[str]) -> list[str]:
    """Return the command with a plain `python` as its first word replaced by the interpreter."""
    return [str(python), *command[1:]] if command[0] in PLAIN else list(command)


def check(python: Path, environment: Mapping[str, str]) -> str:
    """Return one sentence on what will be recorded under the interpreter; see `probe`."""
    return sentence(python, probe(python, environment))


def probe(python: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what the recorder finds under the interpreter, with the child's environment: see replay/engines/__main__.

    Raises ForensicsError when the recorder cannot be imported there.
    """
    try:
        done = subprocess.run(
            [python, "-m", PROBE], env=environment, capture_output=True, text=True, errors="replace",
            timeout=PROBE_SECONDS, check=False,
        )  # fmt: skip
        facts = json.loads(done.stdout.strip().rpartition("\n")[2]) if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, ValueError) as fault:
        raise _no_recorder(python, str(fault)) from None
    if not isinstance(facts, dict):
        raise _no_recorder(python, (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return facts


def sentence(python: Path, facts: Mapping[str, Any]) -> str:
    """Return the findings of `probe` as one sentence."""
    engines = [f"{name} {version}" for name, version in facts["engines"].items()] or ["no engine that it can record"]
    plugin = {True: "; vLLM finds its plugin", False: "; vLLM will not load its plugin", None: ""}[facts["plugin"]]
    if facts["plugin"] is False and facts["plugins_allowed"] is not None:
        plugin = "; vLLM will not load its plugin: add forensics_record to VLLM_PLUGINS"
    return f"recorder {facts['recorder']} under Python {facts['python']} ({python}): {', '.join(engines)}{plugin}"


def _no_recorder(python: Path, reason: str) -> ForensicsError:
    return ForensicsError(
        f"{python}: the recorder cannot be imported there: {reason}", BAD_INPUT,
        "it needs Python 3.11 or later that reads PYTHONPATH, and no other package named `replay` before ours",
    )  # fmt: skip
