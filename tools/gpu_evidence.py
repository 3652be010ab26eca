"""What a GPU really does with the factors of this project: one command, one JSON file of raw results.

With the libraries of that machine: which cuBLASLt tactics are offered, and whether they repeat bit for bit; what its
log says of torch's own products; in which order each shape is summed at each M; whether a row depends on the other
rows; what forbidding splits does; attention by batch; our Triton kernel. Then flips planted and proven, `python -m
replay --doctor`, and the tests marked gpu. Needs torch, transformers and pytest only; a section that fails is an
answer too.

    PYTHONPATH=. OUT=evidence python tools/gpu_evidence.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gpu_probes import SECTIONS, environment

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
SUBPROCESS_SECONDS = 240
NO_DEVICE = 4


def main() -> int:
    """Run every section; a section that fails is an answer too. Return 0, or 4 where there is no CUDA device."""
    if not torch.cuda.is_available():
        sys.stderr.write("gpu_evidence: no CUDA device here; run it on a machine that has one, nothing was written\n")
        return NO_DEVICE
    out = Path(os.environ.get("OUT", "gpu-evidence"))
    out.mkdir(parents=True, exist_ok=True)
    answers: dict[str, Any] = {"environment": environment()}
    for name, section in (*SECTIONS.items(), ("doctor", doctor), ("tests", tests)):
        started = time.monotonic()
        answers[name] = answer(section)
        answers[name]["seconds"] = round(time.monotonic() - started, 1)
        (out / "gpu-evidence.json").write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n")
        sys.stdout.write(f"{name}: {answers[name].get('fault', 'ok')} ({answers[name]['seconds']} s)\n")
        sys.stdout.flush()
    return 0


def answer(section: Callable[[], Any]) -> dict[str, Any]:
    """Return what a section found, or how it failed."""
    try:
        return {"found": section()}
    except Exception as fault:  # noqa: BLE001 - what a library raises there is what we want to know
        return {"fault": f"{type(fault).__name__}: {fault}"[:2000]}


def doctor() -> Any:
    """Return what of each factor is honoured here."""
    return json.loads(child("-m", "replay", "--doctor").stdout)


def tests() -> Any:
    """Return the end of the run of the tests marked gpu."""
    done = child("-m", "pytest", "-m", "gpu", "-q", "-rA", "tests/replay", check=False)
    return {"exit_code": done.returncode, "lines": done.stdout.splitlines()[-60:]}


def child(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in the checkout."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, check=check,
                          capture_output=True, text=True, timeout=SUBPROCESS_SECONDS)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
