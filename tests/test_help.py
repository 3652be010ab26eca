"""Help that can be believed: its examples are run, and the shell completes what they need."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer

from forensics.cli.app import app
from tests.story import Story

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
DIVERGENCE = {"incidents": (1,), "explain": (1,), "fleet": (1,), "replay": (0, 1, 4), "drill": (0, 1, 4)}
"""Exit codes; 0 for all others. What a replay shows depends on the machine that it runs on."""
WITH_ENGINE = {
    "record": "recorded 96 requests",
    "replay": "filed ",
    "drill": "next: forensics ingest ",
    "map": "A border is a fact",
}
"""Command → what it says at the end."""


def examples(command: str) -> list[str]:
    """Return the examples at the end of a command's help, without their comments."""
    head, _, listed = str(COMMANDS[command].epilog or "").partition("Examples:\n")
    assert head == "\b\n", f"{command}: epilog=examples(…) is missing"
    return [line.partition(" # ")[0].strip() for line in listed.splitlines()]


def can_run(example: str) -> bool:
    """Return whether an example names only what the repository has: no stand-ins in capitals, nothing left out."""
    words = shlex.split(example)
    stand_ins = [word for word in words if word.partition(".")[0].rstrip("/").replace("-", "").isupper()]
    return not stand_ins and "…" not in words and words[0] == "forensics"


def shell(words: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FORENSICS_")}
    program = "import sys; sys.argv[0] = 'forensics'; from forensics.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *words], cwd=folder, text=True, capture_output=True, check=False, timeout=300,
        env=environment | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that looks like the repository, with the fixture filed in its store."""
    made = tmp_path_factory.mktemp("examples")
    for name in ("fixtures", "tools"):
        (made / name).symlink_to(ROOT / name)
    ingest = next(filter(can_run, examples("ingest")))
    assert shell(shlex.split(ingest)[1:], made).returncode == 0
    return made


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples_that_fit_a_terminal(command: str, tmp_path: Path) -> None:
    shown = shell([command, "--help"], tmp_path, COLUMNS="80").stdout
    assert len(shown.splitlines()) > 5
    assert all(len(line) <= 80 for line in shown.splitlines())
    found = examples(command)
    assert 1 <= len(found) <= 4
    assert any(f" {command} " in f"{one} " for one in found)
    for one in found:
        assert f"    {one}" in shown, "not joined or broken"


@pytest.mark.parametrize(
    "example", [one for command in COMMANDS if command not in WITH_ENGINE for one in examples(command) if can_run(one)]
)
def test_an_example_does_what_it_says(example: str, folder: Path) -> None:
    words = shlex.split(example)[1:]
    done = shell(words, folder)
    assert done.returncode in DIVERGENCE.get(words[0], (0,)), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", WITH_ENGINE)
def test_an_example_that_needs_an_engine(command: str, folder: Path) -> None:
    pytest.importorskip("transformers")
    words = shlex.split(next(one for one in examples(command) if can_run(one)))[1:]
    done = shell(words, folder)
    assert done.returncode in DIVERGENCE.get(words[0], (0,)), done.stderr
    assert WITH_ENGINE[command] in done.stderr


@pytest.mark.parametrize("command", [one for one in COMMANDS if one not in ("record", "whatif")])
def test_every_command_has_an_example_that_is_run(command: str) -> None:
    assert any(can_run(one) for one in examples(command))


# --- completion -----------------------------------------------------------------------------------------------------


@pytest.fixture
def completed(tmp_path: Path) -> Callable[..., list[str]]:
    Story().engine().request("load-1", (1, 2), external_req_id="client-9").request("load-2", (1, 2)).request(
        "idle", (1, 2)
    ).request("lo$(touch x)", (1,)).request("lo\n", (1,)).write(tmp_path / "log.jsonl")
    assert shell(["ingest", "log.jsonl"], tmp_path).returncode == 0

    def complete(line: str, **variables: str) -> list[str]:
        words = {
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
            "_FORENSICS_COMPLETE": "complete_bash",
        }
        done = shell([], tmp_path, **words, **variables)
        assert done.stderr == ""
        return [one for one in done.stdout.split("\n") if one]

    return complete


def test_the_shell_completes_commands_values_and_request_ids(completed: Callable[..., list[str]]) -> None:
    assert completed("forensics ex") == ["explain", "export"]
    assert completed("forensics explain --format m") == ["markdown"]
    assert completed("forensics record --compress z") == ["zstd"]
    assert completed("forensics explain lo") == ["load-1", "load-2"], "nothing that a shell would run"
    assert completed("forensics explain load-1 --against cl") == ["client-9"]


def test_completion_is_silent_where_there_is_no_store(completed: Callable[..., list[str]], tmp_path: Path) -> None:
    assert completed("forensics explain lo", FORENSICS_DB="nowhere.duckdb") == []
    assert not (tmp_path / "nowhere.duckdb").exists()
    (tmp_path / "broken.duckdb").write_bytes(b"nothing like a store" * 100)
    assert completed("forensics explain --db broken.duckdb lo") == []


def test_completion_can_be_installed(tmp_path: Path) -> None:
    shown = shell(["--help"], tmp_path).stdout
    assert "--install-completion" in shown
    assert "_FORENSICS_COMPLETE" in shell([], tmp_path, _FORENSICS_COMPLETE="source_bash").stdout
