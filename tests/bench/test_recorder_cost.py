"""What the recorder costs: the same batches with and without it, in alternating pairs, beside a control without it.

make bench ARGS="-k recorder"      FORENSICS_BENCH_MODEL=DIR: another model than the tiny one

Three processes of one engine serve in turn: recorder on, off, and off once more; "off" is the mean of the two. Equal
processes differ by a few per cent from where their memory came to lie, so all three start anew STARTS times. The second
ratio (one off to the other) is the noise of this machine; a cost that is not above it was not seen. Nothing is asserted
about time. The tiny model takes about a millisecond a step, so its ratio is far above that of a model that one would
serve: read its µs a step.
Recordings are packed as gzip: what a serving image without the module zstandard gets.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.rounds import NEW_TOKENS

ROOT = Path(__file__).parents[2]
MODEL = os.environ.get("FORENSICS_BENCH_MODEL", str(ROOT / "fixtures" / "models" / "tiny-llama"))
STARTS, ROUNDS = 6, 3
ARM_SECONDS = 1.5
QUIET = {
    "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip


class Arm:
    """One process that serves when it is told to; idle in between."""

    def __init__(self, engine: str, batch: int, log: Path | None) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FORENSICS_")}
        path = os.pathsep.join((str(ROOT / "replay" / "autoload"), str(ROOT)))
        recording = {} if log is None else {"FORENSICS_RECORD": str(log), "FORENSICS_RECORD_COMPRESS": "gzip"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("rounds.py")), engine, MODEL, str(batch)],
            env=kept | QUIET | recording | {"PYTHONPATH": path}, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.warm: float = self._answer()["wall"]

    def serve(self, batches: int) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{batches}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def stop(self) -> None:
        self.process.communicate(timeout=60)


@pytest.mark.bench
@pytest.mark.parametrize("batch", [32, 1])
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_recorder(engine: str, batch: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if getattr(importlib.util.find_spec(engine), "origin", None) is None:
        pytest.skip(f"{engine} is not in this environment (make test-vllm has one with vLLM)")
    ratios: dict[tuple[str, str], list[float]] = {}
    offs: dict[str, list[float]] = {"wall": [], "cpu": []}
    for start in range(STARTS):
        log = tmp_path / str(start)
        batches, rounds = measured(engine, batch, log)
        logs = [part.read_bytes() for part in log.glob("*.jsonl*")]
        texts = [gzip.decompress(part) if part.startswith(b"\x1f\x8b") else part for part in logs]
        assert sum(text.count(b'"kind":"step"') for text in texts) >= (batches * ROUNDS + 2) * batch * NEW_TOKENS, (
            "the recorder was on"
        )
        for one in rounds:
            for what in offs:
                off = (one["off"][what] + one["off again"][what]) / 2
                offs[what].append(off / batches / NEW_TOKENS)
                ratios.setdefault((what, "on to off"), []).append(one["on"][what] / off)
                ratios.setdefault((what, "off to off"), []).append(one["off again"][what] / one["off"][what])
    with capsys.disabled():
        print(f"\n{engine}, batch {batch}, {Path(MODEL).name}, {STARTS} starts of {ROUNDS} rounds")
        for (what, name), values in ratios.items():
            low, middle, high = statistics.quantiles(values, n=4)
            step = statistics.median(offs[what]) * 1e6
            print(
                f"  {what:4} {name:>10}: {middle - 1:+7.2%}  (half of the rounds: {low - 1:+.2%} to {high - 1:+.2%})"
                f"  {(middle - 1) * step:+8.1f} of {step:,.0f} µs a step"
            )


def measured(engine: str, batch: int, log: Path) -> tuple[int, list[dict[str, dict[str, float]]]]:
    """Start the three processes once; return how many batches a round served, and each round's seconds by arm."""
    arms = {"off": Arm(engine, batch, None), "on": Arm(engine, batch, log), "off again": Arm(engine, batch, None)}
    try:
        batches = max(1, round(ARM_SECONDS / arms["off"].warm))
        rounds = []
        for number in range(ROUNDS):
            order = list(arms)[:: 1 if number % 2 else -1]
            rounds.append({name: arms[name].serve(batches) for name in order})
    finally:
        for arm in arms.values():
            arm.stop()
    return batches, rounds
