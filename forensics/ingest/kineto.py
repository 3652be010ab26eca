"""Traces of torch.profiler (Kineto, Chrome's JSON, plain or packed): device kernels, and collectives with their ranks.

A collective of NCCL has the times of its kernel, where only the call was recorded its start; one of Gloo those of its
work on the host. `ts` counts from baseTimeNanoseconds; older files have none and count from the Unix epoch. Host
operators are no kernels.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from forensics.compression import Broken, unpacked_head
from forensics.ingest import BEGINNING, Entry
from forensics.json_stream import Malformed, Value, values
from forensics.profiler import CALL, EVENTS, OF_INTEREST, Event, Links, linked
from forensics.traces import POINT_TO_POINT, are_sizes, collective, element_bytes, launch
from forensics.values import Rejected, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forensics.ingest import Mark

KNOWS_RUN: Final = False
GLOO: Final = "gloo:"
EPOCH_US: Final = 1e15
"""Microseconds, in the year 2001: a `ts` from there on counts from the Unix epoch."""
BEGINS: Final = re.compile(rb'\s*\{\s*"schemaVersion"\s*:.*"(?:traceEvents|deviceProperties)"\s*:', re.DOTALL)
Fields = dict[str, Any]


def detect(head: bytes) -> bool:
    """Return whether the file begins like a trace that Kineto wrote."""
    return BEGINS.match(unpacked_head(head)) is not None


def read(path: Path, size: int, start: Mark = BEGINNING) -> Iterator[Entry]:
    """Yield the records in the order of the trace. A file that breaks off gives what came before, and says so."""
    links = linked(path, size)
    last, seq = Value("", 1, 0, b"", 0), 0
    try:
        for last in values(path, size, EVENTS):
            if last.member != EVENTS or not OF_INTEREST.search(last.raw):
                continue
            try:
                records = list(_records(links, Event(parse(last.raw))))
            except Rejected as rejected:
                yield Entry(last.line, last.offset, last.raw, rejected, last.position)
                continue
            for record in records:
                known = {name: value for name, value in record.items() if value is not None}
                yield Entry(last.line, last.offset, last.raw, known | {"seq": seq}, last.position)
                seq += 1
    except (Malformed, Broken) as fault:
        yield Entry(last.line, last.offset, b"", Rejected(f"the trace breaks off: {fault}"), size)


def _records(links: Links, event: Event) -> Iterator[Fields]:
    """Yield the records of one event; None in them is absent."""
    rank, external = {"rank": links.rank}, event.whole("External id") or 0
    start = _wall(links, event.start)
    span = {
        "start_ts": start,
        "end_ts": _wall(links, event.start + event.duration),
        "comm_ms": round(event.duration / 1e3, 6),
    }
    if event.category == "kernel":
        where = links.launches.get(event.whole("correlation") or 0)
        step = {"engine_step": links.step(*where) if where else None}
        yield {"kind": "kernel", "name": event.name, **rank, **step, "start_ts": start, **_device(links, event)}
        call = event.args if CALL in event.args else links.calls.get(external)
        if call is not None:
            yield {**_called(call), **rank, **step, **span}
    elif event.category == "cpu_op" and CALL in event.args and external not in links.on_device:
        step = {"engine_step": links.step(event.process, event.start)}
        yield {**_called(event.args), **rank, **step, "start_ts": start}
    elif event.category == "user_annotation" and event.name.startswith(GLOO):
        step = {"engine_step": links.step(event.process, event.start, event.duration)}
        yield {**_worked(event), "comm_id": links.group, **rank, **step, **span}


def _wall(links: Links, moment: float) -> float | None:
    """Return Unix seconds; None where the trace does not say what its clock counts from."""
    if links.base_ns is None and moment < EPOCH_US:
        return None
    return ((links.base_ns or 0) + round(moment * 1e3)) / 1e9


def _device(links: Links, event: Event) -> Fields:
    op, shape = links.operators.get(event.whole("External id") or 0, (None, None))
    grid, block = event.args.get("grid"), event.args.get("block")
    geometry = launch(grid, block) if are_sizes(grid) and are_sizes(block) else None
    where = {"device_index": event.whole("device"), "stream": event.whole("stream"), "launch": geometry}
    return {"dur_us": event.duration, "op": op, "shape": shape, **where}


def _called(args: Fields) -> Fields:
    """Return the collective that a call states. Between two ranks it has a count of its own, which is not taken."""
    op, elements, dtype, group = (args.get(name) for name in (CALL, "In msg nelems", "dtype", "Process Group Name"))
    if type(op) is not str:
        raise Rejected("a collective without a name")
    size = element_bytes(dtype) if type(dtype) is str else None
    return {
        "kind": "collective",
        "op": collective(op),
        "bytes": elements * size if type(elements) is int and size else None,
        "comm_id": group if type(group) is str else None,
        "seq_no": None if collective(op) in POINT_TO_POINT else args.get("Seq"),
    }


def _worked(event: Event) -> Fields:
    """Return a collective of Gloo. It states no group and no number."""
    sizes, types = event.args.get("Input Dims"), event.args.get("Input type")
    total: int | None = None
    if type(sizes) is list and type(types) is list and len(sizes) == len(types) and all(map(are_sizes, sizes)):
        widths = [element_bytes(one) if type(one) is str else None for one in types]
        if None not in widths:
            total = sum(math.prod(size) * (width or 0) for size, width in zip(sizes, widths, strict=True))
    return {"kind": "collective", "op": collective(event.name), "bytes": total}
