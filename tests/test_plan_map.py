"""The map as people see it: classes in words, a grid of letters, markdown, a picture, exit codes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from forensics.cli import main
from forensics.errors import ForensicsError
from forensics.plan_map import report, run

if TYPE_CHECKING:
    from pathlib import Path


def line(points: list[list[Any]], axis: str = "tokens", carried: Any = ()) -> dict[str, Any]:
    return {"phase": "decode", "axis": axis, "held": "1 row", "prompt": 4, "points": points, "carried": carried}


def cell(phase: str, rows: int, tokens: int, bits: str | None) -> dict[str, Any]:
    return {"phase": phase, "rows": rows, "tokens": tokens, "bits": bits, "why": None if bits else "no <b>memory</b>"}


FOUND: dict[str, Any] = {
    "engine": "transformers", "dtype": "bfloat16", "prompt_tokens": 4, "launches": 9, "seconds": 1.5, "repeats": True,
    "cells": [
        cell("prefill", 1, 4, "x"), cell("decode", 1, 1, "a"), cell("decode", 1, 2, "b"), cell("decode", 2, 2, None),
    ],
    "lines": [line([[1, "a"], [2, "b"], [4, "b"]], carried=[[[1, 2], ["down", "k"]]])],
}  # fmt: skip


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([[1, "a"], [2, "b"], [64, "b"]], "1 | 2–64"),
        ([[1, "a"], [2, "b"], [4, "a"]], "1, 4 | 2"),
        ([[1, "a"], [2, None], [4, "a"]], "1–4: all the same"),
        ([[1, None]], "nothing ran"),
    ],
)
def test_classes_in_words(points: list[list[Any]], said: str) -> None:
    assert report.classes(line(points)) == said


def test_of_padding_only_what_ran_is_named() -> None:
    assert report.classes(line([[0, "a"], [8, "b"], [16, "a"], [32, "a"]], "left_pad")) == "0, 16, 32 | 8"


def test_what_carries_a_border() -> None:
    assert report.lines(FOUND)[0][-1] == "1 | 2: down, k"
    assert report.lines({"lines": [line([], carried=[[[1, 2], []]])]})[0][-1] == "1 | 2: no GEMM alone"


def test_the_grid_has_letters_gaps_and_failures() -> None:
    head, rows = report.grid(FOUND, "decode")
    assert head[1:] == ["1", "2"]
    assert rows == [["1", "A", "B"], ["2", "", "?"]]


def test_markdown_holds_all_and_escapes_what_an_engine_said() -> None:
    said = report.document(FOUND, "map.svg")
    assert "![classes of equal bits](map.svg)" in said
    assert "| 1 &#124; 2–4" in said
    assert "<b>" not in said


def test_a_race_is_inconclusive() -> None:
    assert report.exit_code(FOUND) == 0
    assert report.exit_code(FOUND | {"repeats": False}) == 4
    assert "can be trusted" in next(iter(report.notes(FOUND | {"repeats": False})))


def cli(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["forensics", "map", *words])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


def test_the_command_shows_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "make", lambda *_: FOUND)
    assert cli(monkeypatch, "model", "-o", str(tmp_path / "new" / "map.svg")) == 0
    shown = capsys.readouterr()
    assert "1 | 2–4" in shown.out
    assert "A border is a fact" in shown.err
    drawn = (tmp_path / "new" / "map.svg").read_text(encoding="utf-8")
    assert "launch tokens" in drawn
    assert cli(monkeypatch, "model", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == FOUND
    assert cli(monkeypatch, "model", "--format", "markdown") == 0
    assert capsys.readouterr().out.startswith("# Which launches")
    assert cli(monkeypatch, "model", "-o", str(tmp_path / "map.txt")) == 2
    monkeypatch.setattr(run, "make", lambda *_: pytest.fail("a map was made that cannot be drawn"))
    (tmp_path / "file").touch()
    assert cli(monkeypatch, "model", "-o", str(tmp_path / "file" / "map.svg")) == 3


def test_what_cannot_work_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ForensicsError, match="holds no config"):
        run.make(tmp_path, "transformers", sys.executable, 1, 4, [4])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ForensicsError, match="no such interpreter") as error:
        run.make(tmp_path, "transformers", "nowhere/python", 1, 4, [4])
    assert error.value.exit_code == 2
