"""`python -m replay.engines.drill MODULE FILE`: let an engine's module serve the workload of a drill.

Imports no engine: what the interpreter lacks is said in one line.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from replay.workload import Workload, WorkloadError, say

USAGE, BAD_INPUT, INTERRUPTED = 2, 3, 130


def main() -> int:
    """Serve the workload; return the exit code."""
    module, path = sys.argv[1:]
    try:
        served = importlib.import_module(module).drive(Workload.read(Path(path)))
    except ImportError as fault:
        say(f"error: {sys.executable} has no {fault.name}: name an interpreter that has it with --python")
        return USAGE
    except WorkloadError as fault:
        say(f"error: {fault}")
        return BAD_INPUT
    except KeyboardInterrupt:
        say("interrupted; what was recorded stays")
        return INTERRUPTED
    del served  # not before: a model that goes away ends its recording
    return 0


if __name__ == "__main__":
    sys.exit(main())
