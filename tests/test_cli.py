"""The command line as a person meets it: exit codes, messages without tracebacks, nothing lost."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forensics.cli import main
from tests.story import Story

A, B = (1, 2, 3, 4), (1, 2, 9, 9)


class Shell:
    """Runs `forensics` in this process, in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        monkeypatch.chdir(folder)
        monkeypatch.delenv("FORENSICS_DB", raising=False)

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["forensics", *words])
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        out, err = self.capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


@pytest.fixture
def told(shell: Shell) -> Shell:
    story = Story().engine().request("idle-1", A).request("idle-2", A).request("load", B, rows=4, drift=0.25)
    story.write(shell.folder / "log.jsonl")
    assert shell("ingest", "log.jsonl")[0] == 0
    return shell


def test_the_whole_path(told: Shell) -> None:
    code, out, _ = told("incidents")
    assert (code, "load" in out) == (1, True)
    code, out, _ = told("explain", "load")
    assert (code, "batch_recomposition" in out) == (1, True)
    assert len(out.splitlines()) <= 50, "one screen"
    assert max(map(len, out.splitlines())) <= 100
    code, out, _ = told("explain", "idle-2", "--against", "idle-1")
    assert (code, "No divergence" in out) == (0, True)
    code, out, err = told("contract", "load")
    assert (code, "record these first" in err) == (0, True)
    assert "batch.gpu_ms" in out
    code, _, _ = told("export", "load", "-o", "reviews/one.md")
    assert code == 0
    names = sorted(path.name for path in (told.folder / "reviews").iterdir())
    assert names == ["one-timeline.png", "one-timeline.svg", "one.md"]
    review = (told.folder / "reviews/one.md").read_text(encoding="utf-8")
    assert "log.jsonl:" in review
    assert "What we cannot claim" in review
    assert "one-timeline.svg" in review


def test_json_of_every_list(told: Shell) -> None:
    for words in (["incidents"], ["contract", "load"], ["quarantine"], ["ingest", "log.jsonl"]):
        _, out, _ = told(*words, "--format", "json")
        assert isinstance(json.loads(out), list)
    _, out, _ = told("explain", "load", "--format", "json")
    assert json.loads(out)["root_cause"] == "batch_recomposition"


def test_a_trace_is_filed_under_the_run_that_is_said(told: Shell) -> None:
    trace = str(Path(__file__).parent.parent / "fixtures" / "traces" / "gloo-slow-rank" / "nccl_trace_rank_1")
    code, _, err = told("ingest", trace)
    assert (code, "which knows no run" in err, "on file: --run r" in err) == (3, True, True)
    code, _, err = told("ingest", trace, "--rank", "1")
    assert (code, "--replica and --rank say more of --run" in err) == (2, True)
    code, _, err = told("ingest", "log.jsonl", "--run", "r")
    assert (code, "leave out --run" in err) == (3, True)
    code, out, _ = told("ingest", trace, "log.jsonl", "--run", "r", "--rank", "1", "--format", "json")
    assert (code, [one["format"] for one in json.loads(out)]) == (0, ["flight_recorder", "jsonl"])
    assert told("ingest", trace, "--run", "r", "--check")[0] == 0


def test_ingest_twice_changes_nothing(told: Shell) -> None:
    code, out, _ = told("ingest", "log.jsonl", "--format", "json")
    summary = json.loads(out)[0]
    assert code == 0
    assert summary["duplicates"] == summary["read"] > 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["explain"], 2, "Missing argument"),
        (["explain", "load", "--format", "pdf"], 2, "'pdf' is not one of"),
        (["expalin", "load"], 2, "No such command"),
        (["explain", "load", "--db", "other.duckdb"], 3, "forensics ingest"),
        (["explain", "nobody"], 2, "no request 'nobody'"),
        (["explain", "load", "--against", "load"], 2, "the same request"),
        (["contract", "nobody"], 2, "no request"),
        (["ingest", "missing.jsonl"], 3, "missing.jsonl"),
        (["ingest"], 2, "Missing argument"),
        (["export", "load", "-o", "log.jsonl/review.md"], 3, "log.jsonl"),
        (["case", "load", "-o", "log.jsonl/case.json"], 3, "cannot write"),
        (["replay", "load", "--python", "/nowhere/python"], 2, "/nowhere/python"),
        (["record", "--", "/nowhere/server"], 3, "cannot start"),
        (["record"], 2, "Missing argument"),
    ],
)
def test_wrong_calls(told: Shell, words: list[str], code: int, says: str) -> None:
    found, out, err = told(*words)
    assert found == code
    assert says in " ".join((out + err).split())


@pytest.mark.parametrize("content", [b"", os.urandom(4096), b"\x1f\x8b" + os.urandom(100), b"SQLite format 3\0" * 20])
def test_files_that_are_no_log(told: Shell, content: bytes) -> None:
    (told.folder / "noise.bin").write_bytes(content)
    code, _, err = told("ingest", "noise.bin")
    assert code == 3
    assert "noise.bin" in err


def test_a_torn_file_keeps_what_can_be_read(told: Shell) -> None:
    story = Story("run-2").engine().request("later", A)
    data = story.write(told.folder / "later.jsonl").read_bytes()
    (told.folder / "later.jsonl").write_bytes(data[:-20])
    code, out, err = told("ingest", "later.jsonl", "--format", "json")
    summary = json.loads(out)[0]
    assert (code, summary["quarantined"]) == (0, 1)
    assert summary["read"] == summary["stored"] + 1
    assert "set aside" in err
    _, out, _ = told("quarantine")
    assert "later.jsonl" in out


def test_a_torn_gz_keeps_what_can_be_read(told: Shell) -> None:
    data = gzip.compress(Story("run-3").engine().request("zipped", A).write(told.folder / "x.jsonl").read_bytes())
    (told.folder / "torn.jsonl.gz").write_bytes(data[: len(data) * 2 // 3])
    code, out, _ = told("ingest", "torn.jsonl.gz", "--format", "json")
    summary = json.loads(out)[0]
    assert code == 0
    assert summary["stored"] > 0
    assert summary["quarantined"] >= 1


def test_a_store_that_is_none(told: Shell) -> None:
    (told.folder / "fake.duckdb").write_bytes(b"not a database at all" * 100)
    code, _, err = told("explain", "load", "--db", "fake.duckdb")
    assert code == 3
    assert "fake.duckdb" in err


def test_replay_needs_ids(shell: Shell) -> None:
    story = Story().engine().request("idle", A).request("load", B, rows=2, drift=0.25)
    for record in story.records:
        record.pop("effective_token_ids", None)
    story.write(shell.folder / "log.jsonl")
    shell("ingest", "log.jsonl")
    code, _, err = shell("replay", "load")
    assert code == 4
    assert "--with-ids" in err


def test_record_says_so_when_no_recorder_reported_in(shell: Shell) -> None:
    code, _, err = shell("record", "-o", "rec", "--", sys.executable, "-c", "print('no engine here')")
    assert code == 4
    assert "no recorder reported in" in err
    assert shell("record", "--", sys.executable, "-c", "raise SystemExit(7)")[0] == 7


def test_help_names_every_command_and_the_readme_shows_it(shell: Shell) -> None:
    code, out, _ = shell("--help")
    assert code == 0
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for line in out[out.index("Commands:") :].splitlines()[1:]:
        if line.strip():
            assert f"forensics {line.split()[0]}" in readme, line


def test_interrupt_keeps_nothing_half_done(told: Shell) -> None:
    """SIGINT while a large file is read: exit code 130, no traceback, and the store opens as it was."""
    lines = (told.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    step = json.loads(next(line for line in lines if '"kind": "step"' in line))
    with (told.folder / "large.jsonl").open("w", encoding="utf-8") as large:
        for number in range(150_000):
            large.write(json.dumps(step | {"req_id": "many", "step": number, "seq": number}) + "\n")
    code = "import sys; from forensics.cli import main; sys.argv = ['forensics', 'ingest', 'large.jsonl']; main()"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=told.folder, stderr=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=1.5)  # if it were done by then, the test would see nothing
    child.send_signal(2)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err
    code_after, out, _ = told("ingest", "log.jsonl", "--format", "json")
    assert code_after == 0
    assert json.loads(out)[0]["stored"] == 0
    assert told("explain", "many")[0] == 2, "nothing of the interrupted file is in the store"


def test_a_failed_first_ingest_leaves_no_store(shell: Shell) -> None:
    assert shell("ingest", "nothing-here.jsonl", "--db", "new/one.duckdb")[0] == 3
    assert not (shell.folder / "new/one.duckdb").exists()
    code, _, err = shell("explain", "a", "--db", "new/one.duckdb")
    assert (code, "forensics ingest" in err) == (3, True)


def test_a_store_may_stand_in_a_folder_that_is_not_there_yet(shell: Shell) -> None:
    Story().engine().request("a", A).write(shell.folder / "log.jsonl")
    assert shell("ingest", "log.jsonl", "--db", "deep/down/one.duckdb")[0] == 0
    assert shell("contract", "a", "--db", "deep/down/one.duckdb")[0] == 0


@pytest.mark.parametrize("out", ["forensics.duckdb", "log.jsonl", "."])
def test_no_document_is_written_over_evidence(told: Shell, out: str) -> None:
    before = (told.folder / "log.jsonl").read_bytes(), (told.folder / "forensics.duckdb").read_bytes()
    for command in ("export", "case"):
        code, _, err = told(command, "load", "-o", out)
        assert code == 2
        assert "-o" in err
    assert before == ((told.folder / "log.jsonl").read_bytes(), (told.folder / "forensics.duckdb").read_bytes())
    assert not list(told.folder.glob("*.svg"))


def test_nothing_usable_is_bad_input(shell: Shell) -> None:
    (shell.folder / "odd.jsonl").write_text('{"kind": "step", "req_id": 7}\n{"kind": "nonsense"}\n', encoding="utf-8")
    code, _, err = shell("ingest", "odd.jsonl")
    assert code == 3
    assert "no row of this could be used" in err


def test_what_was_named_and_cannot_be_used_is_bad_input(told: Shell) -> None:
    (told.folder / "verdict.json").write_text('{"format":"forensics.verdict/1"}', encoding="utf-8")
    code, out, err = told("ingest", "verdict.json", "log.jsonl")
    assert code == 3
    assert "log.jsonl" in out
    assert "skipped verdict.json: a verdict without an outcome" in err
    code, _, err = told("ingest", ".")
    assert code == 0
    assert "skipped" in err


def test_what_is_missing_is_said(shell: Shell) -> None:
    story = Story().engine().request("a", A)
    del story.records[3:5]
    story.add("event", what="drops", detail={"dropped": 7})
    story.write(shell.folder / "log.jsonl")
    code, _, err = shell("ingest", "log.jsonl")
    assert code == 0
    assert "2 records are missing from the sequence, 7 were dropped by a recorder: forensics sources" in err
    code, out, err = shell("sources", "--format", "json")
    (row,) = json.loads(out)
    assert (code, row["missing"], row["dropped"], row["file"]) == (0, 2, 7, "log.jsonl")
    assert "2 records missing between" in err
    assert shell("sources")[0] == 0


def test_a_gateway_that_contradicts_is_said(told: Shell) -> None:
    part = {"kind": "request", "req_id": "load", "effective_tokens": 99, "tenant_sha256": "tt", "ts": 1.0}
    (told.folder / "gateway.jsonl").write_text(json.dumps(part) + "\n", encoding="utf-8")
    code, _, err = told("ingest", "gateway.jsonl")
    assert (code, "1 requests are told differently" in err) == (0, True)
    assert "gateway.jsonl:1" in told("sources")[2]
    assert told("explain", "load")[0] == 1, "one request, no ambiguity"
    assert len(json.loads(told("find", "load", "--format", "json")[1])) == 1


def test_find(told: Shell) -> None:
    code, out, err = told("find", "--finish", "length", "--limit", "2")
    assert code == 0
    assert "idle-1" in out
    assert "3 request(s); 1 left out" in err
    code, out, _ = told("find", "loa", "--replica", "r0", "--model", "TINY", "--format", "json")
    assert (code, [row["request"] for row in json.loads(out)]) == (0, ["load"])
    code, out, err = told("find", "--prompt", "nobody asked this", "--format", "json")
    assert (code, json.loads(out), "none fits" in err) == (0, [], True)
    assert told("incidents", "--replica", "elsewhere")[0] == 0
    assert told("incidents", "--replica", "r0", "--since", "1h")[0] == 1


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["find", "--since", "soon"], 2, "is no time"),
        (["find", "--until", "1h", "--since", "1m"], 2, "is after"),
        (["find", "--output-sha256", "zz"], 2, "is no sha256"),
        (["find", "--prompt-file", "nowhere.txt"], 3, "nowhere.txt"),
        (["find", "--limit", "0"], 2, "--limit"),
        (["incidents", "--since", "tomorrow"], 2, "is no time"),
        (["sources", "--db", "other.duckdb"], 3, "forensics ingest"),
        (["ingest", "--check", "nowhere.jsonl"], 3, "no such file"),
    ],
)
def test_wrong_searches(told: Shell, words: list[str], code: int, says: str) -> None:
    found, out, err = told(*words)
    assert found == code
    assert says in " ".join((out + err).split())


def test_check_stores_nothing(shell: Shell) -> None:
    story = Story().engine(dtpye="bfloat16").request("a", A)
    story.write(shell.folder / "log.jsonl")
    code, out, err = shell("ingest", "--check", "log.jsonl")
    assert code == 0
    assert "the flip can be located" in out
    assert "did you mean dtype?" in err
    assert [path.name for path in shell.folder.iterdir()] == ["log.jsonl"]
    (shell.folder / "log.jsonl").write_text('{"kind":"step","req_id":7}\n', encoding="utf-8")
    code, out, _ = shell("ingest", "--check", "log.jsonl", "--format", "json")
    assert (code, json.loads(out)["rejected"][0]["first"]) == (3, "log.jsonl:1")


def test_a_picture_beside_a_review_whose_name_has_spaces(told: Shell) -> None:
    assert told("export", "load", "-o", "out dir/my (review).md")[0] == 0
    review = (told.folder / "out dir/my (review).md").read_text(encoding="utf-8")
    assert "(my%20%28review%29-timeline.svg)" in review
    assert (told.folder / "out dir/my (review)-timeline.svg").exists()


def test_a_replay_without_the_model_says_so(told: Shell) -> None:
    story = Story("run-3").engine(engine="transformers", model_id=str(told.folder))
    story.request("one", A).request("two", B, rows=2, drift=0.25).write(told.folder / "more.jsonl")
    told("ingest", "more.jsonl", "--db", "t.duckdb")
    code, _, err = told("replay", "two", "--db", "t.duckdb")
    assert code == 3
    assert "no verdict" in err
