"""The documents say what is so: transcripts are run, links lead somewhere, commands are named.

UPDATE=1 writes what the commands print into README.md.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from forensics.registry import names

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("fixtures/**/README.md"))]
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^\$ forensics (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


def test_the_readme_transcript_is_what_the_commands_print(tmp_path: Path) -> None:
    (block,) = CONSOLE.findall(README.read_text(encoding="utf-8"))
    commands = COMMAND.findall(block)
    assert len(commands) >= 3
    for words, expected in commands:
        run = [sys.executable, "-m", "forensics.cli", *words.split(), "--db", str(tmp_path / "store.duckdb")]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
        printed = [line.rstrip() for line in done.stdout.rstrip().splitlines()]
        if os.environ.get("UPDATE") == "1":
            before, after = f"$ forensics {words}\n{expected.rstrip()}", "\n".join([f"$ forensics {words}", *printed])
            README.write_text(README.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
            continue
        assert printed == expected.rstrip().splitlines(), words


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_every_factor_of_the_room_is_in_the_documentation() -> None:
    import replay.factors
    from replay.catalogue import factors
    from replay.factors import file_of

    text = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")
    for name in names(replay.factors):
        own = [one for one in factors() if file_of(one) == name]
        written = {re.sub(r"^gemm\.(q|k|v|o|gate|up|down|lm_head)\.", "gemm.<role>.", one) for one in own}
        assert written, name
        assert all(f"`{one}`" in text for one in written), written
