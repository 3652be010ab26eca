"""A real vLLM server's load lived through again, and what differed from idle proven, in a short version.

make test-vllm once, then make bench ARGS="-k served"
FORENSICS_BENCH_VLLM=PYTHON: another interpreter with vLLM
FORENSICS_BENCH_MODEL=DIR: another model than the tiny one, whose answers seldom differ

The committed evidence comes from tools/replay_figures.py and tools/prove_served.py with more requests. Nothing is
asserted about time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MODEL = os.environ.get("FORENSICS_BENCH_MODEL", str(ROOT / "fixtures" / "models" / "tiny-llama"))
PYTHON = Path(os.environ.get("FORENSICS_BENCH_VLLM", ROOT / ".venv-vllm" / "bin" / "python"))

pytestmark = [
    pytest.mark.bench,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"{PYTHON} is not there: make test-vllm makes it"),
]


def measured(tool: str, out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Return what a tool wrote and what it printed."""
    command = [sys.executable, str(ROOT / "tools" / tool), str(out), "--model", MODEL, "--python", str(PYTHON)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text(encoding="utf-8")), done.stdout


def test_served_requests_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, printed = measured("replay_figures.py", tmp_path / "out.json", "--count", "20", "--sample", "2")
    assert set(figures["shapes"]) == {"steady", "bursts", "mixed"}
    for shape in figures["shapes"].values():
        assert shape["misses"] == []
        assert shape["bit_identical"] == shape["requests"] > 20
        assert shape["with_ids_withheld_bit_identical"] == shape["with_ids_withheld"] > 0
    with capsys.disabled():
        print("\n" + printed)


def test_served_differences_are_proven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--work", str(tmp_path / "work"), "--count", "40", "--shapes", "bursts", "--most", "3")
    evidence, printed = measured("prove_served.py", tmp_path / "out.json", *arguments)
    with capsys.disabled():
        print("\n" + printed)
    if not evidence["shapes"]["bursts"]["differ"]:
        pytest.skip(f"no answer of {MODEL} differed from idle: FORENSICS_BENCH_MODEL=DIR names a model that flips more")
    assert len(evidence["pairs"]) == min(3, len(evidence["shapes"]["bursts"]["differ"]))
    assert [one for one in evidence["pairs"] if one["outcome"] != "proven"] == []
