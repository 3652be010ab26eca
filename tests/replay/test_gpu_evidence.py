"""The evidence command: it ends with a message where there is no GPU, and a section that fails is an answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Return tools/gpu_evidence.py on a machine that says it has a device, with sections of this test."""
    import gpu_evidence

    def breaks():
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(gpu_evidence.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_evidence, "SECTIONS", {"works": lambda: [1], "breaks": breaks})
    monkeypatch.setattr(gpu_evidence, "environment", lambda: {"card": "none"})
    monkeypatch.setattr(gpu_evidence, "doctor", list)
    monkeypatch.setattr(gpu_evidence, "tests", lambda: {"exit_code": 0})
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return gpu_evidence


def test_without_a_device_it_says_so_and_writes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "gpu_evidence.py"], capture_output=True, text=True, check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OUT": str(tmp_path / "out"), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr == "gpu_evidence: no CUDA device here; run it on a machine that has one, nothing was written\n"
    assert not (tmp_path / "out").exists()


def test_every_section_is_answered(tool, tmp_path):
    assert tool.main() == 0
    found = json.loads((tmp_path / "out" / "gpu-evidence.json").read_text())
    assert list(found) == ["environment", "works", "breaks", "doctor", "tests"]
    assert found["works"]["found"] == [1]
    assert found["breaks"]["fault"] == "RuntimeError: CUBLAS_STATUS_NOT_SUPPORTED"


def test_a_flip_with_a_known_cause_is_found_and_proven():
    from planted_flip import planted, run_with

    from replay.doctor import RANDOM_MODEL
    from replay.engines.transformers import Engine
    from replay.prove import prove

    engine = Engine(None, RANDOM_MODEL)
    try:
        case = planted(engine, {"gemm.k_split": "3"}, {"gemm.k_split": "1"})
        verdict = prove(case, [], run_with(engine))
        with pytest.raises(RuntimeError, match=r"gemm\.q\.algo"):
            planted(engine, {"gemm.q.algo": "id=66,nonsense=1"}, {})
    finally:
        engine.stop()
    assert verdict.outcome == "proven"
    assert [one.factor for one in verdict.factors] == ["gemm.k_split"]
