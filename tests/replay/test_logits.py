"""The logits of a step record: JSON has no NaN, and a step that cannot be written is evidence lost."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from replay.logits import logit_fields
from replay.policy import Policy
from replay.writer import Writer

if TYPE_CHECKING:
    from pathlib import Path


def test_finite_logits_and_their_margin() -> None:
    assert logit_fields([20.0, 19.5, 3.0]) == {"top_logits": [20.0, 19.5, 3.0], "margin": 0.5}
    assert logit_fields([20.0]) == {"top_logits": [20.0]}


@pytest.mark.parametrize(("values", "broken"), [([math.nan, math.nan], 2), ([math.inf, 3.0], 1), ([3.0, -math.inf], 1)])
def test_what_is_no_number_is_counted(values: list[float], broken: int) -> None:
    assert logit_fields(values) == {"nonfinite_logits": broken}


def test_a_step_with_a_nan_is_written(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "run", {"run_id": "run"}, Policy(compress="none"), 0)
    writer.write("step", req_id="a", step=0, **logit_fields([math.nan, 1.0]))
    writer.close()
    (path,) = tmp_path.glob("*.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one["nonfinite_logits"] for one in records if one["kind"] == "step"] == [1]
    assert not [one for one in records if one.get("what") == "recorder_fault"]
