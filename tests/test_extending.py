"""docs/extending.md, taken at its word: its files go into a copy of the rooms, and its commands are run there.

UPDATE=1 writes what the commands print into the page.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.story import Story

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "docs" / "extending.md"
PAGE = SOURCE.read_text(encoding="utf-8")
FILE = re.compile(r"^```(python|csv|diff) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (forensics|python) (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
CASE = ROOT / "fixtures" / "incidents" / "transformers-tiny-batch" / "case.json"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FORENSICS_")}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, text=True, capture_output=True, check=False, timeout=300,
        env=environment | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def changed(text: str, diff: str) -> str:
    """Apply a diff that only adds lines after a line that is there once."""
    before = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] == " ")
    after = "".join(line[1:] for line in diff.splitlines(keepends=True))
    assert text.count(before) == 1, f"{before!r} is there {text.count(before)} times"
    return text.replace(before, after)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the rooms with all that the page adds, and the inputs of its commands."""
    folder = tmp_path_factory.mktemp("extended")
    for room in ("forensics", "replay", "schemas"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for language, name, text in FILE.findall(PAGE):
        path = folder / name
        assert path.exists() == (language == "diff"), f"{name}: the program has such a file"
        path.write_text(changed(path.read_text(), text) if language == "diff" else text, encoding="utf-8")
    shutil.copy(CASE, folder / "case.json")
    story = Story("run-0").engine().request("idle", (1, 2, 3, 4))
    other = Story("run-1").engine(weights_sha256="b" * 64).request("load", (1, 2, 9, 9), drift=0.25)
    for record in other.records:
        record["replica_id"] = "r1"
    story.records += other.records
    story.write(folder / "log.jsonl")
    return folder


def test_the_page_has_an_example_for_every_room() -> None:
    rooms = {Path(name).parent.as_posix() for language, name, _ in FILE.findall(PAGE) if language == "python"}
    assert rooms == {"forensics/ingest", "forensics/detectors", "forensics/reports", "replay/factors"}


@pytest.mark.parametrize("block", range(len(CONSOLE.findall(PAGE))))
def test_commands_print_what_the_page_says(extended: Path, block: int) -> None:
    commands = COMMAND.findall(CONSOLE.findall(PAGE)[block])
    assert commands
    for program, words, expected in commands:
        start = ["-m", "forensics.cli"] if program == "forensics" else []
        done = run(extended, *start, *words.split())
        output = done.stdout if program == "forensics" else done.stderr
        printed = "".join(f"{line.rstrip()}\n" for line in output.rstrip().splitlines())
        if os.environ.get("UPDATE"):
            text = SOURCE.read_text(encoding="utf-8")
            SOURCE.write_text(text.replace(f"{words}\n{expected}", f"{words}\n{printed}"), encoding="utf-8")
        else:
            assert printed == expected, done.stderr


def test_the_link_is_where_the_page_puts_it(extended: Path) -> None:
    run(extended, "-m", "forensics.cli", "ingest", "log.jsonl", "--db", "links.duckdb")
    words = ["explain", "load", "--against", "idle", "--format", "json", "--db", "links.duckdb"]
    told = json.loads(run(extended, "-m", "forensics.cli", *words).stdout)
    assert [link["cause"] for link in told["chain"]] == ["replica_change", "weights_drift", "logit_drift"]


def test_new_members_keep_what_their_rooms_promise(extended: Path) -> None:
    (extended / "tests").mkdir(exist_ok=True)
    shutil.copy(ROOT / "tests" / "test_registry.py", extended / "tests")
    done = run(extended, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", "-k", "not documented")
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


FORCE = """
from pathlib import Path
from replay.casefile import load_case
from replay.engines.transformers import Engine

case = load_case(Path("case.json"))
engine = Engine(case, {model!r})
for value in ("off", "30"):
    trace = engine.run(case.reference.plan | {{"logits.softcap": value}})
    print(value, trace.refused, trace.observed["logits.softcap"])
"""


def test_the_factor_is_forced_and_read_back(extended: Path) -> None:
    pytest.importorskip("transformers")
    done = run(extended, "-c", FORCE.format(model=str(ROOT / "fixtures" / "models" / "tiny-llama")))
    assert done.stdout == "off None off\n30 None 30\n", done.stderr
