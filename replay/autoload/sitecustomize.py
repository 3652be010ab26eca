"""Switch the recorders on in a process that knows nothing of them, and has not even `replay` installed.

Python imports this file at start when its folder is on PYTHONPATH. With FORENSICS_RECORD set, `install()` runs once
`transformers.generation.utils` is imported, and not before: nothing else is imported here. vLLM finds its recorder by
itself, through the entry point in the `.dist-info` beside this file. A sitecustomize that this one shadows still runs.
Nothing in here raises.
"""

from __future__ import annotations

import os
import sys

WATCHED = "transformers.generation.utils"
TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


class RecordAfterImport:
    """Import hook for one module: loads it as ever, then starts the recorder."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Load the watched module through its own loader, and record from then on."""
        if name != WATCHED:
            return None
        import importlib.util

        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_then_record(module: ModuleType) -> None:
            load(module)
            start_recorder()

        spec.loader.exec_module = load_then_record  # type: ignore[method-assign]
        return spec


class FindReplay:
    """Import hook for `replay` where it is not installed.

    It lies in a checkout or in another interpreter's site-packages: nothing else in there is for this process, so that
    folder does not go on the path.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find the package `replay`; its modules follow from it."""
        if name != "replay":
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [self.root])


def start_recorder() -> None:
    """Start the recorder; say on stderr if that fails, and let the program go on."""
    try:
        from replay.engines.transformers_record import install

        install()
    except Exception as fault:  # noqa: BLE001 - recording must never fail the program
        sys.stderr.write(f"forensics: not recording: {type(fault).__name__}: {fault}\n")


def run_shadowed(here: str) -> None:
    """Run the sitecustomize that this file hides, if there is one."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("sitecustomize", [part for part in sys.path if os.path.realpath(part) != here])
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


def start() -> None:
    """Do both; what fails is said on stderr."""
    here = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - no pathlib in every process that starts
    try:
        if os.environ.get("FORENSICS_RECORD"):
            sys.meta_path.append(FindReplay(os.path.dirname(os.path.dirname(here))))  # noqa: PTH120
            sys.meta_path.insert(0, RecordAfterImport())
        run_shadowed(here)
    except Exception as fault:  # noqa: BLE001 - the interpreter must start
        sys.stderr.write(f"forensics: sitecustomize: {type(fault).__name__}: {fault}\n")


start()
