"""The vLLM recorder: a plugin that watches a stock vLLM engine and writes contract lines.

vLLM calls `install` in each of its processes (entry point group `vllm.general_plugins`). It does
nothing unless FORENSICS_RECORD names a folder. Otherwise it waits for an engine core to be built and
puts hooks around methods of that one object, its scheduler and its model runners (`vllm_core`), and in
the API process around the client's (`vllm_api`). Nothing of vLLM is replaced.
"""

from __future__ import annotations

import functools
import sys
from multiprocessing import util as multiprocessing_util
from typing import TYPE_CHECKING, Any, TypeVar

from replay.engines import vllm_api, vllm_core
from replay.record import Gateway, Recorder, configured_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Stream = TypeVar("Stream", Recorder, Gateway)

MARK = "forensics_attached"


def install() -> None:
    """Entry point: arrange that the engine cores and API clients of this process are recorded. Never raises."""
    if configured_directory() is None:
        return
    try:
        from vllm.v1.engine import core

        _attach_at(core.EngineCore, "__init__", attach)
        # A spawned process loads its plugins inside that very __init__, too late to hook it; it still has to enter
        # its loop. A forked one inherits both hooks. Attaching twice does nothing.
        for owner in [found for found in vars(core).values() if isinstance(found, type)]:
            if issubclass(owner, core.EngineCore) and "run_busy_loop" in vars(owner):
                _attach_at(owner, "run_busy_loop", attach, entering=True)
    except Exception as fault:  # noqa: BLE001 - a recorder that cannot start must not stop the server
        _say(f"not recording: this vLLM has no engine core that we know ({type(fault).__name__}: {fault})")
    try:
        from vllm.v1.engine.async_llm import AsyncLLM

        _attach_at(AsyncLLM, "__init__", attach_client)
    except Exception as fault:  # noqa: BLE001 - the engine alone is worth recording
        _say(f"not recording what clients ask: no API client that we know ({type(fault).__name__}: {fault})")


def _attach_at(owner: Any, name: str, attaches: Callable[[Any], Any], *, entering: bool = False) -> None:
    """Make a method of a class call attaches(self) when it returns, or, if `entering`, when it is called."""
    original = getattr(owner, name)
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def attaching(self: Any, *args: Any, **kwargs: Any) -> Any:
        if entering:
            attaches(self)
        result = original(self, *args, **kwargs)
        if not entering:
            attaches(self)
        return result

    setattr(attaching, MARK, True)
    setattr(owner, name, attaching)


def attach(core: Any) -> None:
    """Start recording a finished engine core. Never raises."""
    _start(core, lambda folder: Recorder(folder, "vllm"), vllm_core.observe)


def attach_client(client: Any) -> None:
    """Start recording what an API process is asked. Never raises."""
    _start(client, lambda folder: Gateway(folder, "vllm-api"), vllm_api.observe)


def _start(owner: Any, opened: Callable[[Path], Stream], observe: Callable[[Any, Stream], list[str]]) -> None:
    """Record one object once: observe(owner, recorder) puts the hooks in and returns what they cannot see."""
    directory = configured_directory()
    try:
        if directory is None or hasattr(owner, MARK):
            return
        setattr(owner, MARK, True)
        recorder = opened(directory)
        try:
            missing = observe(owner, recorder)
        except Exception as fault:
            recorder.write("event", what="recorder_fault", detail={"hook": "attach", "fault": f"{fault!r}"})
            recorder.close()
            raise
        # Children of multiprocessing leave without running atexit; this is the exit that they do run.
        multiprocessing_util.Finalize(recorder, recorder.close, exitpriority=100)
        if missing:
            _say(f"cannot observe here: {'; '.join(missing)}")
        _say(f"recording {recorder.path}")
    except Exception as fault:  # noqa: BLE001 - a recorder that cannot start must not stop the server
        _say(f"not recording: {type(fault).__name__}: {fault}")


def _say(message: str) -> None:
    print(f"forensics: {message}", file=sys.stderr, flush=True)
