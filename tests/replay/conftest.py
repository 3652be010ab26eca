"""The tiny model, once a session, on one thread: thresholds of kernels move with threads."""

from pathlib import Path

import pytest

MODEL = Path(__file__).parents[2] / "fixtures" / "models" / "tiny-llama"


@pytest.fixture(scope="session")
def model_path():
    return MODEL


@pytest.fixture(scope="session")
def model():
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).eval()


@pytest.fixture(scope="session")
def prompts():
    """Return prompts of mixed lengths, ids only, the same on every machine."""
    import random

    draw = random.Random(7)
    return [[0, *(draw.randrange(2, 1024) for _ in range(length))] for length in (31, 12, 47, 20, 9, 38, 26, 15)]


@pytest.fixture(autouse=True)
def plain_logs(monkeypatch):
    """Write logs that a test can read line by line; compression has tests of its own."""
    monkeypatch.setenv("FORENSICS_RECORD_COMPRESS", "none")


@pytest.fixture
def recording(tmp_path, monkeypatch):
    """Record with ids into a folder for the test; return a function that stops and reads the log."""
    from from_log import read_log

    from replay.engines.transformers import install

    monkeypatch.setenv("FORENSICS_RECORD_IDS", "1")
    monkeypatch.setenv("FORENSICS_RECORD_LOGITS_SHA256", "1")
    stop = install(tmp_path / "log")

    def finish():
        stop()
        return read_log(tmp_path / "log")

    yield finish
    stop()
