"""The map: known classes are found with their borders and what carries them; real kernels are held as asked."""

import json
import subprocess
import sys

import pytest
import torch

from replay.engines.transformers import Engine
from replay.plan_map import __main__ as program
from replay.plan_map.cells import ROLES, Cell, MapError, Reading, Survey, least_tokens
from replay.plan_map.survey import ladder, survey, token_line
from replay.plan_map.trials import Trials, chart
from replay.trial import Trace


class Known:
    """A probe whose bits are a function of the cell."""

    forces_roles = True
    prompt = 4

    def __init__(self, bits):
        self.bits = bits
        self.asked = []

    def read(self, cell, repeat=0):
        self.asked.append(cell)
        return Reading(self.bits(cell))


def lines_of(probe, rows=8, tokens=64):
    found = survey(probe, rows, tokens, lambda _line: None)
    return {(line.phase, line.axis): line for line in found.lines}, found


def rows_of(cell, role):
    """Return M of a role in a cell."""
    return dict(cell.roles).get(role, cell.rows if role == "lm_head" else cell.tokens)


def test_one_class_has_no_border():
    lines, found = lines_of(Known(lambda cell: "same"))
    assert [line.borders for line in lines.values()] == [[]] * 6
    assert [line.carried for line in lines.values()] == [()] * 6
    assert found.repeats


def test_a_border_in_one_gemm_is_found_to_the_row_and_named():
    lines, _ = lines_of(Known(lambda cell: f"{cell.phase} {rows_of(cell, 'down') >= 23}"))
    for phase in ("prefill", "decode"):
        assert lines[phase, "tokens"].borders == [(22, 23)]
        assert lines[phase, "tokens"].carried == (((22, 23), ("down",)),)
        assert lines[phase, "rows"].borders == [], "launch tokens are held there"


def test_three_classes_between_two_measured_values():
    lines, _ = lines_of(Known(lambda cell: str((cell.tokens > 35) + (cell.tokens > 50))))
    assert lines["decode", "tokens"].borders == [(35, 36), (50, 51)]


def test_what_the_rows_carry_is_lm_head_or_attention():
    lines, _ = lines_of(Known(lambda cell: f"{cell.phase} {rows_of(cell, 'lm_head') > 3}"))
    assert lines["decode", "rows"].borders == [(3, 4)]
    assert lines["decode", "rows"].carried == (((3, 4), ("lm_head",)),)
    assert lines["decode", "tokens"].borders == []
    lines, _ = lines_of(Known(lambda cell: f"{cell.phase} {cell.rows > 3}"))
    assert lines["decode", "rows"].carried == (((3, 4), ("attention",)),)
    lines, _ = lines_of(Known(lambda cell: f"{cell.phase} {cell.rows > 3} {rows_of(cell, 'lm_head') > 3}"))
    assert lines["decode", "rows"].carried == (((3, 4), ("attention", "lm_head")),)


def test_a_border_that_no_gemm_carries_alone_is_left_open():
    lines, _ = lines_of(Known(lambda cell: str(all(rows_of(cell, role) > 9 for role in ROLES))))
    assert lines["decode", "tokens"].carried == (((9, 10), ()),)


def test_padding_and_the_mask_are_told_apart():
    lines, _ = lines_of(Known(lambda cell: str(cell.left_pad is not None)))
    assert lines["decode", "left_pad"].carried == (((0, 0), ("mask",)),)
    lines, _ = lines_of(Known(lambda cell: str((cell.left_pad or 0) % 16)))
    assert lines["decode", "left_pad"].carried == ()
    assert lines["decode", "left_pad"].borders[-1] == (8, 16)


def test_no_launch_is_asked_for_that_cannot_be():
    probe = Known(lambda cell: "same")
    survey(probe, 8, 64, lambda _line: None)
    assert all(cell.tokens >= least_tokens(cell.phase, cell.rows, probe.prompt) for cell in probe.asked)
    with pytest.raises(MapError, match="raise --tokens or lower --rows"):
        survey(probe, 62, 64, lambda _line: None)


def test_an_engine_that_forces_no_gemm_needs_a_neighbour_for_more_tokens():
    class Plain(Known):
        forces_roles = False

    probe = Plain(lambda cell: f"{cell.phase} {cell.rows > 1} {cell.tokens > 20}")
    lines, found = lines_of(probe)
    assert all(cell.tokens == least_tokens(cell.phase, 1, 4) for cell in probe.asked if cell.rows == 1)
    assert not any(cell.roles or cell.left_pad is not None for cell in probe.asked)
    assert lines["decode", "tokens"].borders == [(20, 21)]
    assert lines["decode", "rows"].points[0][0] == 2
    assert lines["decode", "neighbours"].borders == [(0, 1)]
    assert found.repeats
    with pytest.raises(MapError, match="raise --rows to 2"):
        survey(probe, 1, 64, lambda _line: None)


def test_a_race_shows():
    class Racing(Known):
        def read(self, cell, repeat=0):
            return Reading(f"run {repeat}")

    assert not survey(Racing(None), 1, 4, lambda _line: None).repeats


def test_a_cell_that_did_not_run_parts_nothing():
    class Broken(Known):
        def read(self, cell, repeat=0):
            return Reading(None, "no memory") if cell.tokens == 16 else super().read(cell)

    lines, found = lines_of(Broken(lambda cell: "same"))
    assert lines["decode", "tokens"].borders == []
    assert (16, None) in lines["decode", "tokens"].points
    assert isinstance(found, Survey)
    with pytest.raises(MapError, match="gave no logits in prefill: no"):
        survey(type("None_", (Known,), {"read": lambda self, cell, repeat=0: Reading(None, "no")})(None), 1, 4, print)


def test_the_ladder_has_both_ends():
    assert ladder(1, 12) == [1, 2, 4, 8, 12]
    assert ladder(3, 3) == [3]


# --- trials ---------------------------------------------------------------------------------------------------------


def test_the_plan_of_a_cell_forces_every_gemm_in_both_phases():
    probe = Trials(lambda case, treatment: Trace({}), 4, 100, "bfloat16")
    plan = probe.plan(Cell("decode", 2, 9, roles=(("down", 7), ("lm_head", 1))))
    assert plan["batch.rows"] == "2"
    assert {plan[f"gemm.{role}.rows.decode"] for role in ROLES if role != "down"} == {"9"}
    assert (plan["gemm.down.rows"], plan["gemm.down.rows.decode"], plan["gemm.lm_head.rows"]) == ("7", "7", "1")
    assert "gemm.q.rows" not in probe.plan(Cell("decode", 1, 3)), "a prompt of 4 tokens has no M of 3"


def test_a_pin_that_did_not_take_gives_no_bits():
    probe = Trials(lambda case, treatment: Trace(treatment.plan, tokens=(1,) * 5, logits_sha256=("x",) * 5), 4, 99, "")
    reading = probe.read(Cell("prefill", 1, 4))
    assert reading.bits is None
    assert "nothing was read back" in reading.why


@pytest.fixture
def engine(model_path):
    made = Engine(None, str(model_path))
    yield made
    made.stop()


def run_on(engine):
    def run(case, treatment):
        engine.case = case
        return engine.run(treatment)

    return run


@pytest.fixture
def rows_matter(monkeypatch):
    """A product of the down projection that adds in another order from 9 rows on, on every machine."""
    linear = torch.nn.functional.linear

    def split(x, weight, bias=None):
        if weight.shape != (288, 576) or x.shape[:-1].numel() < 9:
            return linear(x, weight, bias)
        return (x[..., :288] @ weight[:, :288].T).float().add(x[..., 288:] @ weight[:, 288:].T).to(x.dtype)

    monkeypatch.setattr(torch.nn.functional, "linear", split)


def test_a_planted_border_is_found_in_the_real_engine(engine, rows_matter):
    """Whatever borders this machine has of its own: the planted one, carried by down, is among them."""
    config = {"vocab_size": 1024, "dtype": "bfloat16"}
    found = chart(run_on(engine), config, [4], 2, 12, lambda _line: None)
    assert found["repeats"]
    assert [cell["why"] for cell in found["cells"] if cell["bits"] is None] == []
    lines = {(line["phase"], line["axis"]): line for line in found["lines"]}
    assert (8, 9) in lines["decode", "tokens"]["borders"]
    assert "down" in dict(lines["decode", "tokens"]["carried"])[8, 9]
    json.dumps(found, allow_nan=False)


def test_the_line_of_another_prompt(engine):
    probe = Trials(run_on(engine), 6, 1024, "bfloat16")
    line = token_line(probe.read, "prefill", probe, 8)
    assert [value for value, bits in line.points if bits] == [6, 8]
    assert probe.executed > 1


# --- the program ----------------------------------------------------------------------------------------------------


def test_bad_input_gets_one_line(tmp_path, capsys, model_path):
    assert program.main([str(tmp_path)]) == 3
    (tmp_path / "config.json").write_text("{")
    assert program.main([str(tmp_path)]) == 3
    assert program.main([str(model_path), "--rows", "9", "--tokens", "9"]) == 2
    assert program.main([str(model_path), "--engine", "vllm", "--python", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert "no JSON" in said
    assert "cannot be started (--python)" in said
    assert "Traceback" not in said


def test_an_interpreter_without_torch_is_a_usage_error(tmp_path, model_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    command = [sys.executable, "-m", "replay.plan_map", str(model_path), "--python", str(bare)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "has no torch" in done.stderr, done.stdout) == (2, True, "")
