"""Record transformers: `install()`, what the caller may name, and one recorder a run.

Nothing in here can fail a call: faults of hooks are counted and written, the call goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from replay.host import FreeMemory
from replay.record import Recorder, configured_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from replay.engines.transformers_hooks import Call
    from replay.engines.transformers_static import StaticCall

caller_request_ids: ContextVar[tuple[str, ...]] = ContextVar("forensics_request_ids", default=())
caller_plan: ContextVar[dict[str, str]] = ContextVar("forensics_known_plan", default={})  # noqa: B039 - never mutated

CLOSING_SECONDS = 10
MOST_SAID = 5
"""Faults that are said on stderr while there is no log to write them to."""


@contextlib.contextmanager
def request_ids(ids: Iterable[str]) -> Iterator[None]:
    """Name the rows of the `generate` calls inside the block; without it a row is '<8 hex of the call>-<row>'."""
    token = caller_request_ids.set(tuple(ids))
    try:
        yield
    finally:
        caller_request_ids.reset(token)


@contextlib.contextmanager
def plan_facts(facts: dict[str, str]) -> Iterator[None]:
    """Add plan factors that the caller knows to be in force to every launch recorded inside the block."""
    token = caller_plan.set(caller_plan.get() | facts)
    try:
        yield
    finally:
        caller_plan.reset(token)


class Run:
    """A run: its recorder, the thread that hashes its weights, and the number of the next engine step."""

    def __init__(self, recorder: Recorder, weights: threading.Thread) -> None:
        self.recorder, self.weights = recorder, weights
        self.next_step = 0
        self.memory = FreeMemory()

        atexit.register(self.shut_down)  # before the recorder's own end: the last registered goes first

    def shut_down(self) -> None:
        """Say that the run is over, so that its end is told from a cut. Once; the recorder refuses what follows."""
        atexit.unregister(self.shut_down)
        if not self.recorder.closed:
            self.recorder.write("event", what="shutdown", detail={"engine_steps": self.next_step})

    def close(self) -> None:
        """Write what is left and end the file; a hash that takes too long is given up."""
        self.weights.join(CLOSING_SECONDS)
        self.shut_down()
        self.recorder.close()

    def headroom(self) -> dict[str, Any]:
        """Return the memory fields of a batch that keeps its KV in free memory, without a pool."""
        device = self.memory.device_mb()
        if device is not None:
            return {"vram_free_mb": device, "headroom_mb": device, "headroom_source": "device"}
        return {"headroom_mb": self.memory.host_mb(), "headroom_source": "host_memory"}

    def take_step(self) -> int:
        """Return the number of the engine step that starts now."""
        self.next_step += 1
        return self.next_step - 1


class Recorders:
    """One recorder a model, and one a batching loop: each is a run of its own, with its own engine steps."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.faults: Recorder | None = None
        self._runs: weakref.WeakKeyDictionary[Any, Run] = weakref.WeakKeyDictionary()
        self._said = 0
        self._ending: list[threading.Thread] = []

    def run(self, owner: Any, model: Any, config: dict[str, Any], observes: dict[str, list[str]]) -> Run:
        """Return the run that belongs to `owner`, a model or a batching loop; it starts at the first call."""
        from replay.engines.transformers_facts import write_engine

        if owner not in self._runs:
            recorder = Recorder(self.directory, "transformers")
            self.faults = recorder
            run = Run(recorder, write_engine(recorder, model, config, observes))
            gone = weakref.finalize(owner, self._end_later, run)
            gone.atexit = False  # at exit the recorder closes itself
            self._runs[owner] = run
        return self._runs[owner]

    def _end_later(self, run: Run) -> None:
        """End the file of a run whose model or loop is gone, beside whoever dropped it."""
        self._ending = [one for one in self._ending if one.is_alive()]
        self._ending.append(threading.Thread(target=run.close, daemon=True))
        self._ending[-1].start()

    def close(self) -> None:
        """End the files of all runs, also of those that are being ended already."""
        for run in list(self._runs.values()):
            run.close()
        for ending in self._ending:
            ending.join(2 * CLOSING_SECONDS)

    def guard(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a hook: its faults go to the log, or to stderr while there is none."""

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.faults is not None:
                return self.faults.guard(hook)(*args, **kwargs)
            try:
                return hook(*args, **kwargs)
            except Exception as fault:  # noqa: BLE001 - whatever it is, the call goes on
                self._said += 1
                if self._said <= MOST_SAID:
                    sys.stderr.write(f"forensics: not recorded: {type(fault).__name__}: {fault}\n")
                return None

        return guarded


def install(directory: Path | None = None) -> Callable[[], None]:
    """Record every `generate` and continuous batch of this process; return the function that stops it and ends logs.

    `directory`: where logs go, default FORENSICS_RECORD. Raises ValueError when neither names one, and
    AttributeError or ImportError when this transformers has not the functions that are watched.
    """
    from replay.engines import transformers_continuous, transformers_hooks
    from replay.engines.transformers_facts import compiled_parts
    from replay.engines.transformers_static import OBSERVES, StaticCall

    target = directory or configured_directory()
    if target is None:
        raise ValueError("no directory to record into: pass one or set FORENSICS_RECORD")
    recorders = Recorders(target)

    def listen(call: Call) -> StaticCall | None:
        if getattr(call.config, "is_assistant", False):
            return None
        run = recorders.run(call.model, call.model, {"batching": "static"}, OBSERVES)
        if call.compiled or compiled_parts(call.model):  # hooks inside a compiled forward would be traced into it
            run.recorder.write("event", what="not_recorded", detail={"reason": "compiled forward"})
            return None
        return StaticCall(run, call)

    undo = [transformers_hooks.install(listen, recorders.guard), transformers_continuous.install(recorders)]
    return lambda: [stop() for stop in (*undo, recorders.close)].clear()
