"""A stream of contract lines: the serving thread appends to a queue, a thread of our own turns records into bytes.

The writer owns the envelope of every line: `seq` (gapless), `writer`, `clock_id`, `mono_ns` and, unless the caller
gives it, `ts`. Which records are kept is `retention`, which files there are is `segments`, what was lost is `totals`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import socket
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from replay.policy import say
from replay.retention import Retention
from replay.segments import Segments
from replay.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from replay.policy import Policy

P = ParamSpec("P")
R = TypeVar("R")

MAX_FAULTS_WRITTEN = 20
"""Faults that are written out in full; later ones are only counted."""
QUEUE_LIMIT = 200_000
"""Records that may wait for the writer thread. About 100 MB; beyond it records are dropped."""
FLUSH_SECONDS = 0.2
CLOSE_SECONDS: Final = 10.0
BACKLOG_LIMIT: Final = 8 << 20
"""Packed bytes that may wait for a disk that takes none; beyond it records stay in the queue."""
CHUNK: Final = 1000
"""Records that are encoded before they are packed, and before a new segment is considered."""

_encode = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"), default=str
).encode

Queued = tuple[str, dict[str, Any], float, int]


class Writer:
    """Writes one stream into one sequence of files. Thread-safe; never raises into the caller after construction.

    identity: fields that every line carries. written: lines so far.
    """

    def __init__(self, directory: Path, stem: str, identity: dict[str, str], policy: Policy, start_ns: int) -> None:
        host, pid = socket.gethostname(), os.getpid()
        self.writer = f"{host}-{pid}-{start_ns}"
        self.clock_id = f"{host}-{_boot_id()}-{pid}-monotonic"
        self.written = 0
        self.totals = Totals()
        self._policy = policy
        # What never changes is encoded once: identity in front, where a reader looks for it, the rest behind `seq`.
        self._head = "".join(f"{_encode(name)}:{_encode(value)}," for name, value in identity.items())
        self._tail = "," + _encode({"writer": self.writer, "clock_id": self.clock_id})[1:] + "\n"
        self._retention = Retention(policy, _body, self.totals.thinned)
        self._segments = Segments(directory, stem, policy)
        self._engine: list[str] = []
        self._queue: deque[Queued | threading.Event] = deque()
        self._wake = threading.Event()
        self._stop = False
        self._orphaned = False
        self._closing = threading.RLock()
        self._thread = threading.Thread(target=self._drain, name="forensics-recorder", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        os.register_at_fork(after_in_child=functools.partial(_orphan, weakref.ref(self)))

    @property
    def closed(self) -> bool:
        """Whether records are refused: the writer was closed, or this is a forked child that has none."""
        return self._stop

    @property
    def path(self) -> Path:
        """The file that is written now, or was last."""
        return self._segments.path

    def write(self, kind: str, **fields: Any) -> None:
        """Queue one record. Fields that are None are left out: absence is how the contract says 'not known'."""
        if len(self._queue) >= QUEUE_LIMIT or self._stop:
            self.totals.dropped += 1
            return
        self._queue.append((kind, fields, time.time(), time.monotonic_ns()))

    def guard(self, hook: Callable[P, R]) -> Callable[P, R | None]:
        """Wrap a hook so that its time is counted, and its faults are counted and written and never fail a request."""
        totals, clock = self.totals, time.perf_counter_ns

        @functools.wraps(hook)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
            start = clock()
            try:
                return hook(*args, **kwargs)
            except Exception as fault:  # noqa: BLE001 - whatever it is, the request goes on
                totals.faults += 1
                if totals.faults <= MAX_FAULTS_WRITTEN:
                    name = getattr(hook, "__name__", type(hook).__name__)
                    detail = {"hook": name, "fault": f"{type(fault).__name__}: {fault}", "count": totals.faults}
                    self.write("event", what="recorder_fault", detail=detail)
                return None
            finally:
                totals.hook_ns += clock() - start
                totals.hook_calls += 1

        return guarded

    def wake(self) -> None:
        """Ask the writer thread to write what is queued now; returns at once."""
        self._wake.set()

    def flush(self, timeout: float = 5.0) -> None:
        """Wait until all that was queued so far is on disk, at most `timeout` seconds."""
        if self._stop:
            return
        written = threading.Event()
        self._queue.append(written)
        self._wake.set()
        written.wait(timeout)

    def close(self) -> None:
        """Write what is queued and end the file. Called again, it adds a count of what was refused since."""
        if self._orphaned:
            return
        with self._closing:
            if not self._stop:
                self._stop = True
                self._wake.set()
                self._thread.join(CLOSE_SECONDS)
                if self._thread.is_alive() or self._queue or self._segments.backlog:
                    say(f"{self.path}: the disk took no more: {len(self._queue)} records and the last "
                        f"{self._segments.backlog} bytes are lost")  # fmt: skip
            elif self.totals.untold_drops and not self._thread.is_alive():
                with contextlib.suppress(OSError):  # the folder may be gone by now
                    self._segments.reopen()
                    self._tell_losses()
                    self._segments.close()

    def _drain(self) -> None:
        waiting: list[threading.Event] = []
        while True:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            stopping = self._stop
            # A full or vanished disk: what is encoded waits, what is queued waits, then `write` drops and counts.
            with contextlib.suppress(OSError):
                self._write_queued(waiting)
                self._tell_losses()
                self._tell_account(now=False)
                self._segments.flush()
                self._retire()
                for written in waiting:
                    written.set()
                waiting.clear()
                if stopping:
                    self._finish()
            if stopping:
                return

    def _write_queued(self, waiting: list[threading.Event]) -> None:
        while self._queue:
            if self._segments.backlog >= BACKLOG_LIMIT:
                self._segments.push()
            if self._segments.full:
                self._segments.roll()
                self._append(self._engine)
            lines: list[str] = []
            for _ in range(min(CHUNK, len(self._queue))):  # nobody else takes from it
                item = self._queue.popleft()
                if isinstance(item, threading.Event):
                    waiting.append(item)
                else:
                    self._sift(item, lines)
            self._append(lines)

    def _sift(self, item: Queued, lines: list[str]) -> None:
        """Add the lines that are to be written now that this record is there."""
        kind, fields, ts, mono_ns = item
        record: dict[str, Any] = {"kind": kind, "ts": round(ts, 6)}
        self.totals.records[kind] += 1
        try:
            if None in fields.values():
                fields = {name: value for name, value in fields.items() if value is not None}
            record |= fields
            record["mono_ns"] = mono_ns
            if kind == "engine":
                if not self._engine:
                    record["recording"] = self._policy.facts()
                    record["clock"] = {self.clock_id: _clock_pair()}
                self._engine.append(_body(record))
            lines.extend(self._retention.sift(record))
        except Exception as fault:  # noqa: BLE001 - one record that cannot be written must not end the thread
            self.totals.faults += 1
            detail = {"hook": "encode", "fault": f"{type(fault).__name__}: {fault}", "record_kind": kind}
            lines.append(_body(_event("recorder_fault", detail)))

    def _append(self, bodies: Iterable[str]) -> None:
        lines = [f'{{{self._head}{body},"seq":{seq}{self._tail}' for seq, body in enumerate(bodies, self.written)]
        if lines:
            self.written += len(lines)
            self._segments.append("".join(lines).encode("utf-8", "backslashreplace"), len(lines))

    def _tell_losses(self) -> None:
        self._append(_body(_event(*told)) for told in self.totals.losses())

    def _tell_account(self, *, now: bool) -> None:
        account = self.totals.account(self._retention.held, self._segments.bytes_written, now=now)
        self._append(_body(_event(*told)) for told in account)

    def _retire(self) -> None:
        """Delete the files that policy no longer keeps; the event is on disk before they go."""
        if not (expired := self._segments.expired()):
            return
        deleted = self.totals.deleted
        deleted["segments"] += len(expired)
        deleted["bytes"] += sum(segment.size for segment in expired)
        detail = deleted | {"records": expired[-1].end, "files": [segment.path.name for segment in expired]}
        self._append([_body(_event("segments_deleted", detail))])
        self._segments.flush()
        try:
            self._segments.delete(expired)
        except OSError as fault:
            self.totals.faults += 1
            self._append([_body(_event("recorder_fault", {"hook": "delete", "fault": str(fault)}))])

    def _finish(self) -> None:
        """End the file with the totals. What is refused from here on is told when `close` is called again."""
        self._write_queued([])  # a caller may have been between its look at `_stop` and its append
        self._append(self._retention.end(time.monotonic_ns(), round(time.time(), 6)))
        self._tell_account(now=True)
        self._tell_losses()
        self._segments.close()


def _event(what: str, detail: dict[str, Any]) -> dict[str, Any]:
    ts, mono_ns = round(time.time(), 6), time.monotonic_ns()
    return {"kind": "event", "ts": ts, "what": what, "detail": detail, "mono_ns": mono_ns}


def _body(record: dict[str, Any]) -> str:
    """Return a record as JSON without its braces: the envelope comes around it when the line is written."""
    return _encode(record)[1:-1]


def _clock_pair() -> dict[str, Any]:
    """Return one wall reading between two monotonic ones: what ties this process's clock to wall time, and how well."""
    before = time.monotonic_ns()
    wall = time.time()
    return {"wall_ts": round(wall, 6), "mono_before_ns": before, "mono_after_ns": time.monotonic_ns()}


def _orphan(reference: weakref.ref[Writer]) -> None:
    """A child that forked off has the files of its parent and no thread to write them: there this writer is over."""
    if (writer := reference()) is not None:
        writer._orphaned = writer._stop = True
        writer._wake = threading.Event()  # the old one may be locked for ever by a thread that is not here
        writer._queue.clear()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return "unknown-boot"
