"""Recording a command: refused before it starts, its exit code handed on, its records counted."""

from __future__ import annotations

import errno
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from forensics.errors import ForensicsError
from forensics.recording import Recording, record

if TYPE_CHECKING:
    from pathlib import Path


def recorded(directory: Path, code: str) -> Recording:
    head = "import json, os, pathlib, signal\nout = pathlib.Path(os.environ['FORENSICS_RECORD'])\n"
    return record([sys.executable, "-c", head + code], directory, with_ids=False, replica=None)


def test_a_folder_that_cannot_be_written_is_refused_before_the_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(**_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    with pytest.raises(ForensicsError, match="cannot write a recording there: Permission denied") as error:
        recorded(tmp_path / "out", f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    assert error.value.exit_code == 3
    assert "--out" in error.value.hint
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("pass", 0), ("raise SystemExit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137),
     ("os.kill(os.getpid(), signal.SIGTERM)", 143)],
)  # fmt: skip
def test_the_exit_code_is_what_a_shell_says(tmp_path: Path, code: str, exit_code: int) -> None:
    done = recorded(tmp_path, code)
    assert done.exit_code == exit_code
    assert not done.reported
    assert not list(tmp_path.iterdir()), "the test of the folder leaves nothing"


def test_requests_are_counted_once_per_run(tmp_path: Path) -> None:
    code = """
for run in ("r", "s"):
    lines = [{"kind": "engine", "run_id": run}]
    for req in ("a", "b"):
        lines += [{"kind": kind, "run_id": run, "req_id": req} for kind in ("request", "step", "step", "request")]
    (out / f"{run}.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines) + '{"kind":"step","req_')
"""
    done = recorded(tmp_path, code)
    assert done.reported
    assert done.requests == 4
    assert done.records == {"engine": 2, "request": 8, "step": 8}
