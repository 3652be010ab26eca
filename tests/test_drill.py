"""A drill's figures, from logs told by hand: what flipped, what was not compared, and whether a regime occurred."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from forensics.cli import main
from forensics.drill import prompts, report, run
from forensics.drill.prompts import Prompt
from forensics.drill.rates import Drilled, measure
from forensics.drill.regimes import REGIMES, Seen
from forensics.drill.run import MODULE, PROGRAM, Plan, plan
from forensics.errors import ForensicsError
from forensics.intervals import wilson
from tests.story import A, B, Story

ONE = [Prompt("code-1", "code", "def f():")]


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (1, 10, 0.0179, 0.4042), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)],
)
def test_the_score_interval(hits: int, trials: int, low: float, high: float) -> None:
    """The values of the usual tables, to four digits."""
    assert wilson(hits, trials) == pytest.approx((low, high), abs=5e-5)


def test_no_trials_tell_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


# --- what is asked --------------------------------------------------------------------------------------------------


def test_the_built_in_prompts_come_in_turn_by_family() -> None:
    found = prompts.built_in()
    families = {one.family for one in found}
    assert len(families) == 6
    assert {one.family for one in found[:6]} == families, "a few of them have all families"
    assert len({one.name for one in found}) == len(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 prompts"),
        ('{"prompt": 3}\n', "line 1: 'prompt' is not a text"),
        ('fine\n{"family": "a b", "prompt": "x"}', "line 2: 'family' is a b"),
        ('{"family": "\\u001b[2J", "prompt": "x"}', r"'family' is \\u{1b}"),
        ("fine\n{broken", "line 2: begins like JSON and is none"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.jsonl").write_text(text)
    with pytest.raises(ForensicsError, match=said) as error:
        prompts.from_file(tmp_path / "mine.jsonl")
    assert error.value.exit_code == 3
    assert "\x1b" not in error.value.message


def test_prompts_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text('one\n\n{"family": "code", "prompt": "two"}\nthree\n')
    found = prompts.from_file(tmp_path / "mine.txt")
    assert [(one.name, one.text) for one in found] == [("prompt-1", "one"), ("code-1", "two"), ("prompt-2", "three")]


def test_more_requests_than_prompts_come_round_again_under_ids_of_their_own() -> None:
    made = plan(prompts.built_in()[:4], ["concurrency"], "vllm", 2, 8, 10)
    idle, again, loaded = made.phases
    assert len(idle.requests) == len(again.requests) == 4
    assert len({one.req_id for one in loaded.requests}) == len(loaded.requests) == 10
    assert {one.prompt for one in loaded.requests} == {one.prompt for one in idle.requests}
    turns = [[one.prompt.name for one in loaded.requests[start : start + 4]] for start in (0, 4)]
    assert turns[0] != turns[1], "among other neighbours"
    assert "18 requests" in made.budget()


@pytest.mark.parametrize("count", [1, 4, 5, 36])
def test_mixed_lengths_ask_each_prompt_once_and_of_all_lengths_at_any_time(count: int) -> None:
    asked = [Prompt(f"p-{size}", "p", "x" * size) for size in range(1, count + 1)]
    order = [len(one.text) for one in REGIMES["mixed_lengths"].ordered(asked, 4)]
    assert sorted(order) == list(range(1, count + 1))
    together = [order[start : start + 4] for start in range(count - 3)]
    assert all(max(sizes) > count / 2 >= min(sizes) for sizes in together)


def test_every_regime_has_a_row_in_the_documentation_and_every_engine_a_program() -> None:
    root = Path(__file__).parent.parent
    told = (root / "docs" / "drill.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in told for name in REGIMES)
    assert all((root / f"{module.replace('.', '/')}.py").is_file() for module in (PROGRAM, *MODULE.values()))


# --- whether a regime occurred --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "occurred", "not_so"),
    [
        ("concurrency", Seen(9, (4, 8)), Seen(9, (3, 8))),
        ("mixed_lengths", Seen(9, (8, 8), mixed=0.5), Seen(9, (8, 8), mixed=0.4)),
        ("mixed_lengths", Seen(9, (8, 8), mixed=0.5), Seen(9, (3, 8), mixed=0.5)),
        ("small_kv_pool", Seen(9, (8, 8), preemptions=1), Seen(9, (8, 8))),
        ("isolation_strict", Seen(9, (1, 1)), Seen(9, (1, 2))),
    ],
)
def test_a_regime_occurred_or_it_says_why_not(name: str, occurred: Seen, not_so: Seen) -> None:
    assert REGIMES[name].complaint(occurred, 8) is None
    assert REGIMES[name].complaint(not_so, 8)


# --- figures --------------------------------------------------------------------------------------------------------


def drilled(folder: Path, *, idle: tuple[int, ...] = A, again: tuple[int, ...] = A, loaded: tuple[int, ...] = A,
            rows: int = 2, end: str = "length", drift: float = 0.0) -> tuple[Drilled, Plan]:  # fmt: skip
    """Tell a drill of one prompt under one regime, and measure it."""
    made = plan(ONE, ["concurrency"], "vllm", 2, 4, 1)
    story = Story().engine().request("idle.code-1", idle).request("idle-again.code-1", again)
    story.request("concurrency.code-1", loaded, rows=rows, drift=drift, finish_reason=end)
    with story.tell(folder) as store:
        return measure(store, made), made


def test_no_flip(tmp_path: Path) -> None:
    found, _ = drilled(tmp_path)
    (rate,) = found.regimes
    assert (rate.requests.hits, rate.requests.of, rate.tokens.of) == (0, 1, 4)
    assert rate.complaint is None
    assert report.exit_code(found) == 0


def test_a_flip_is_counted_once_and_nothing_after_it(tmp_path: Path) -> None:
    found, _ = drilled(tmp_path, loaded=B, drift=0.25)
    (rate,) = found.regimes
    (flip,) = found.flips
    assert (flip.flip, flip.compared, flip.gap) == (2, 3, 1.0)
    assert (rate.tokens.hits, rate.tokens.of) == (1, 3)
    assert report.exit_code(found) == 1
    (budget,) = found.budgets
    assert budget.flips.hits == 1
    assert budget.within(1.0) == 1.0
    assert budget.within(0.5) == 0.0
    assert budget.in_reach() == 1.0
    assert budget.moved == 4.0, "at the flip the two candidates changed sides: 1 ulp before, 3 ulp beyond"


def test_idle_that_does_not_repeat_itself_decides_nothing(tmp_path: Path) -> None:
    found, made = drilled(tmp_path, again=B, loaded=B)
    assert report.exit_code(found) == 4
    assert any("did not repeat" in line for line in report.notes(found, made, tmp_path, interrupted=False))


def test_a_regime_that_did_not_occur_decides_nothing(tmp_path: Path) -> None:
    made = plan(ONE, ["small_kv_pool"], "vllm", 2, 4, 1)
    story = Story().engine().request("idle.code-1", A).request("idle-again.code-1", A)
    with story.request("small_kv_pool.code-1", A, rows=2).tell(tmp_path) as store:
        found = measure(store, made)
    assert report.exit_code(found) == 4
    assert any("did not occur: no request was preempted" in line
               for line in report.notes(found, made, tmp_path, interrupted=False))  # fmt: skip


def test_what_was_cut_off_is_not_compared_unless_it_had_flipped(tmp_path: Path) -> None:
    found, made = drilled(tmp_path / "same", end="abort")
    assert (found.regimes[0].requests.of, found.regimes[0].unfinished) == (0, 1)
    assert report.exit_code(found) == 4
    said = list(report.notes(found, made, tmp_path, interrupted=True))
    assert "interrupted" in said[0]
    assert any("1 request(s) not compared" in line for line in said)
    found, _ = drilled(tmp_path / "other", loaded=B, end="abort")
    assert (len(found.flips), found.regimes[0].unfinished) == (1, 0)


def test_what_the_log_shows_of_the_launches(tmp_path: Path) -> None:
    found, _ = drilled(tmp_path, rows=3)
    assert found.regimes[0].seen.rows == (3, 3)
    assert found.regimes[0].seen.launches == 4
    assert found.steady.seen.rows == (1, 1)


def test_the_tables_fit_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found, made = drilled(tmp_path, loaded=B)
    report.show(found, made, "tiny", as_json=False)
    shown = capsys.readouterr().out
    assert "100 (21–100)" in shown, "Wilson: one of one"
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80


def test_json_holds_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, made = drilled(tmp_path, loaded=B)
    report.show(found, made, "tiny", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["engine"], told["exit_code"]) == ("tiny", "vllm", 1)
    assert told["regimes"][0]["flips"][0]["req_id"] == "concurrency.code-1"
    assert told["regimes"][0]["requests"]["interval"] == pytest.approx(wilson(1, 1))


# --- before anything runs -------------------------------------------------------------------------------------------


def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["forensics", "drill", *words])
    with pytest.raises(SystemExit) as done:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(done.value.code or 0), err


def test_what_cannot_work_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    code, said = cli(monkeypatch, capsys, "model")
    assert (code, "holds no config.json" in said) == (3, True)
    (tmp_path / "model" / "config.json").write_text("{}")
    code, said = cli(monkeypatch, capsys, "model", "--engine", "transformers", "--regime", "small_kv_pool")
    assert (code, "have no KV pool" in said) == (2, True)
    code, said = cli(monkeypatch, capsys, "model", "--python", "nowhere/python")
    assert (code, "no such interpreter" in said) == (3, True)
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    code, said = cli(monkeypatch, capsys, "model", "--python", str(bare))
    assert code in (2, 3), said
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "vllm-1.jsonl").touch()
    code, said = cli(monkeypatch, capsys, "model", "-o", "old")
    assert (code, "already holds a recording" in said) == (2, True)
    assert not (tmp_path / "drill").exists()


def test_an_interrupt_before_anything_was_recorded_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "run", lambda *_: run.Ended(interrupted=True))
    (tmp_path / "config.json").write_text("{}")
    code, said = cli(monkeypatch, capsys, ".")
    assert (code, "before anything was recorded" in said) == (130, True)
