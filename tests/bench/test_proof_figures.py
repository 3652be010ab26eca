"""The proof itself, measured on this machine: every natural flip, arms of known cause, decoys, cost of a trial.

make bench; the committed evidence comes from tools/prove_flips.py with more prompts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.bench
def test_proof_of_the_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "proof.json"
    tool, model = ROOT / "tools" / "prove_flips.py", ROOT / "fixtures" / "models" / "tiny-llama"
    command = [sys.executable, str(tool), str(model), str(out), "--prompts", "16", "--built", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    evidence = json.loads(out.read_text(encoding="utf-8"))
    assert evidence["decoys"]["pass as proof"] == 0
    assert all(one["outcome"] != "proven" for one in evidence["natural float32"]["proofs"])
    continuous = evidence["continuous batching"]
    assert all(one["outcome"] != "proven" for one in continuous["float32"]["proofs"])
    assert all(one["trials"] <= 64 for part in (evidence["natural bfloat16"], continuous["bfloat16"])
               for one in part["proofs"])  # fmt: skip
    known = [one for one in evidence["known factors"] if one["outcome"] == "proven"]
    assert all(one["factors"] == one["truth"] for one in known)
    with capsys.disabled():
        print("\n" + done.stdout)
