"""Parse, call one function, choose the exit code. The only room that uses typer. Heavy imports happen inside commands.

Exit codes as `diff`: 0 same or done, 1 a divergence, 2 usage, 3 bad input, 4 inconclusive; 130 interrupted.
Results go to stdout, talk to stderr. A file holds the commands of one stage; importing it registers them, so the order
of the imports below is the order of `--help`.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

# isort: off
from forensics.cli.app import app
from forensics.cli import recording as recording
from forensics.cli import evidence as evidence
from forensics.cli import searches as searches
from forensics.cli import answers as answers
from forensics.cli import beyond as beyond
from forensics.cli import proof as proof
from forensics.cli import drills as drills

# isort: on
from forensics.console import say
from forensics.errors import ForensicsError

INTERNAL = 70
"""EX_SOFTWARE of sysexits.h: a bug of ours."""


def main() -> None:
    """Run the command line; errors for the user become a message and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal must not stop a report
    try:
        app()
    except ForensicsError as error:
        say(f"forensics: {error}")
        if error.hint:
            say(f"  {error.hint}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted; nothing half-done is kept")
        sys.exit(130)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the reader went away: no message about it at exit
        sys.exit(0)
    except Exception as fault:  # our bug: still a message, and the way to the traceback
        if os.environ.get("FORENSICS_DEBUG"):
            raise
        say(f"forensics: internal error: {type(fault).__name__}: {fault}")
        say("  this is a bug; run it again with FORENSICS_DEBUG=1 for the traceback, and please report it")
        sys.exit(INTERNAL)
