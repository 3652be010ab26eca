"""Events of a torch.profiler trace, and what links them: the first of the two passes of `forensics/ingest/kineto.py`.

A kernel names its operator by External id and its launch by correlation; the launch lies in a range on the host, and
only those ranges mark engine steps. Times are as in the trace, in µs.
"""

from __future__ import annotations

import contextlib
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from forensics.compression import Broken
from forensics.errors import BAD_INPUT, ForensicsError
from forensics.json_stream import Malformed, Value, values
from forensics.traces import MarkedSteps, marked_step, product_of
from forensics.values import Rejected, parse, parse_any

if TYPE_CHECKING:
    from pathlib import Path

EVENTS: Final = "traceEvents"
CALL: Final = "Collective name"
"""Argument of an event that states a collective."""
MOST_LINKS: Final = 2_000_000
"""Operators and launches that are held at once, a few hundred bytes each."""
MOST_US: Final = 1e17
"""Beyond any clock."""
OF_INTEREST: Final = re.compile(rb'"cat"\s*:\s*"(?:kernel|cpu_op|cuda_runtime|cuda_driver|user_annotation)"')


class Event:
    """One complete event. Raises Rejected where it lacks what every one has."""

    def __init__(self, event: dict[str, Any]) -> None:
        args, name, start, duration = (event.get(one) for one in ("args", "name", "ts", "dur"))
        if type(name) is not str or not isinstance(start, int | float) or not isinstance(duration, int | float):
            raise Rejected("an event without name, ts and dur")
        if not (abs(start) < MOST_US and 0 <= duration < MOST_US):
            raise Rejected("an event at no time, or that took no time that can be")
        self.args: dict[str, Any] = args if type(args) is dict else {}
        self.category, self.process = event.get("cat"), str(event.get("pid"))
        self.name, self.start, self.duration = name, start, duration

    def whole(self, name: str) -> int | None:
        """Return an integer among the arguments."""
        value = self.args.get(name)
        return value if type(value) is int else None


@dataclass
class Links:
    """What the first pass keeps. base_ns: what times count from; group: the only one there is.

    By External id: operators (name, shape) and calls of collectives; those whose kernel is in the trace are in
    `on_device`. By correlation: launches (process, time). steps: the marked ones, by process.
    """

    rank: int | None = None
    base_ns: int | None = None
    group: str | None = None
    operators: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    on_device: set[int] = field(default_factory=set)
    launches: dict[int, tuple[str, float]] = field(default_factory=dict)
    windows: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)
    steps: dict[str, MarkedSteps] = field(default_factory=dict)

    def step(self, process: str, start: float, duration: float = 0.0) -> int | None:
        """Return the marked step that a span on the host lies in."""
        return self.steps[process].of(start, start + duration) if process in self.steps else None


def linked(path: Path, size: int) -> Links:
    """Return what links the events of a trace. What cannot be read is passed over: the second pass tells it."""
    links = Links()
    with contextlib.suppress(Malformed, Broken):
        for value in values(path, size, EVENTS):
            with contextlib.suppress(Rejected):
                _link(links, value)
            if len(links.operators) + len(links.launches) > MOST_LINKS:
                message = f"{path}: a trace of more than {MOST_LINKS} operators and launches"
                raise ForensicsError(message, BAD_INPUT, "profile fewer steps: torch.profiler.schedule(active=…)")
    links.steps = {process: MarkedSteps(windows) for process, windows in links.windows.items()}
    return links


def _link(links: Links, value: Value) -> None:
    if value.member == "distributedInfo":
        said = parse(value.raw)
        rank, groups = said.get("rank"), said.get("pg_config")
        links.rank = rank if type(rank) is int else None
        if type(groups) is list and len(groups) == 1 and type(groups[0]) is dict:
            links.group = str(groups[0].get("pg_name"))
    elif value.member == "baseTimeNanoseconds":
        base = parse_any(value.raw)
        links.base_ns = base if type(base) is int else None
    elif value.member == EVENTS and OF_INTEREST.search(value.raw):
        _link_event(links, Event(parse(value.raw)))


def _link_event(links: Links, event: Event) -> None:
    external, correlation = event.whole("External id"), event.whole("correlation")
    if event.category == "cpu_op" and external is not None:
        links.operators[external] = sys.intern(event.name), product_of(event.name, event.args.get("Input Dims"))
        if CALL in event.args:
            links.calls[external] = event.args
    elif event.category in ("cuda_runtime", "cuda_driver") and correlation is not None:
        links.launches[correlation] = event.process, event.start
    elif event.category == "user_annotation" and (step := marked_step(event.name)) is not None:
        links.windows.setdefault(event.process, []).append((event.start, event.start + event.duration, step))
    elif event.category == "kernel" and external is not None and (CALL in event.args or "nccl" in event.name.lower()):
        links.on_device.add(external)
