"""The whole path on this machine: record live, ingest, list, explain, replay, export. Started by `make demo`.

Everything is done with the commands that a user has; this script only calls them one after the other and shows
what it calls. Where nothing diverges on this machine it says so and goes on with the committed incident.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
MODEL = "fixtures/models/tiny-llama"
COMMITTED = "fixtures/incidents/transformers-tiny-batch/log"
DB = "demo/forensics.duckdb"
FORENSICS = str(Path(sys.executable).parent / "forensics")


def run(*words: str, ok: tuple[int, ...] = (0,), quiet: bool = False) -> str:
    """Show and run one command; return its stdout. Ends the demo when the exit code is not one that is expected."""
    print(f"\n\033[1m$ {shlex.join(words)}\033[0m" if sys.stdout.isatty() else f"\n$ {shlex.join(words)}", flush=True)
    program = [FORENSICS, *words[1:]] if words[0] == "forensics" else list(words)
    done = subprocess.run(program, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if not quiet:
        print(done.stdout, end="", flush=True)
    if done.returncode not in ok:
        sys.exit(f"demo: the last command ended with exit code {done.returncode}; its message is above")
    return done.stdout


def nearest(listed: list[dict[str, object]]) -> str:
    """Return the request that flipped earliest: its replay is the shortest."""
    return str(min(listed, key=lambda row: (row["flip at"] is None, row["flip at"]))["request"])


def main() -> None:
    """Run the demo and say where the review is."""
    start = time.monotonic()
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    python = sys.executable
    print("A plain transformers program serves 32 prompts alone, twice, and then in batches of eight (about a minute).")
    run("forensics", "record", "--with-ids", "-o", "demo/recording", "--", python, "tools/tiny_service.py", MODEL)
    run("forensics", "ingest", "demo/recording", "--db", DB)
    listed = json.loads(run("forensics", "incidents", "--db", DB, "--format", "json", ok=(0, 1), quiet=True))
    if listed:
        print(f"{len(listed)} requests got another answer in a batch than alone:")
        run("forensics", "incidents", "--db", DB, ok=(1,))
    else:
        print("On this machine no answer depended on the batch. That is a result: its kernels gave the same bits.")
        print("The demo goes on with the incident that is committed in the repository, recorded on another machine.")
        run("forensics", "ingest", COMMITTED, "--db", DB)
        listed = json.loads(run("forensics", "incidents", "--db", DB, "--format", "json", ok=(1,), quiet=True))
    request = nearest(listed)
    run("forensics", "explain", request, "--db", DB, ok=(1,))
    run("forensics", "replay", request, "--pin-algo", "batch.rows=1", "--model", MODEL, "--db", DB, ok=(0, 1, 4))
    run("forensics", "replay", request, "--model", MODEL, "--db", DB, ok=(0, 1, 4))
    run("forensics", "explain", request, "--db", DB, ok=(1,))
    run("forensics", "export", request, "-o", "demo/review.md", "--db", DB)
    print(f"\nThe review is demo/review.md, with demo/review-timeline.svg and .png. ({time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
    main()
