"""Append-only writer of contract lines: one JSON object a line, one file a process.

The serving path only appends to a queue; a thread turns records into bytes. A fault in here
never reaches the engine: hooks are wrapped in `Recorder.guard`, records that do not fit in the
queue are dropped and counted, and both show up in the log as events.

The writer owns the envelope of every line: `seq` (gapless per writer), `writer`, `clock_id`,
`mono_ns` and, unless the caller gives it, `ts`.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import hashlib
import hmac
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

P = ParamSpec("P")
R = TypeVar("R")

QUEUE_LIMIT = 200_000
"""Records that may wait for the writer thread. About 100 MB; beyond it records are dropped."""
FLUSH_SECONDS = 0.2
PENDING_LIMIT = 8 << 20
"""Encoded bytes that may wait for a disk that takes none; beyond it records stay in the queue."""
MAX_FAULTS_WRITTEN = 20
"""Faults that are written out in full; later ones are only counted."""


def token_ids_sha256(ids: Iterable[int]) -> str:
    """Return sha256 (hex) over ids as unsigned 32-bit little-endian integers: the contract's form."""
    packed = array.array("I", ids)
    if packed.itemsize != 4:  # pragma: no cover - no such platform is known to run torch
        raise OSError("this platform has no 32-bit unsigned int")
    if sys.byteorder == "big":
        packed.byteswap()
    return hashlib.sha256(packed.tobytes()).hexdigest()


def batch_fingerprint(rows: Iterable[tuple[str, int, int]]) -> str:
    """Return the fingerprint of the ordered rows (request, tokens scheduled, tokens computed before)."""
    text = "\n".join(f"{req_id} {scheduled} {computed}" for req_id, scheduled, computed in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def configured_directory() -> Path | None:
    """Return the directory that FORENSICS_RECORD names, or None when recording is off."""
    name = os.environ.get("FORENSICS_RECORD", "")
    return Path(name) if name else None


class Recorder:
    """Writes one run of one engine. Thread-safe; never raises into the caller after construction.

    with_ids: write token ids (prompt, output, top) and not only hashes and tags. Off by default:
    ids are as sensitive as the text. Default from FORENSICS_RECORD_IDS=1.
    """

    def __init__(
        self,
        directory: Path,
        engine: str,
        *,
        with_ids: bool | None = None,
        replica_id: str | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.with_ids = os.environ.get("FORENSICS_RECORD_IDS") == "1" if with_ids is None else with_ids
        host, pid, start = socket.gethostname(), os.getpid(), time.time_ns()
        while (directory / f"{engine}-{start // 1_000_000:x}-{pid}.jsonl").exists():
            start += 1_000_000  # a second recorder of this process in the same millisecond
        self.replica_id = replica_id or os.environ.get("FORENSICS_REPLICA") or f"{host}-{engine}"
        self.run_id = f"{engine}-{start // 1_000_000:x}-{pid}"
        self.writer = f"{host}-{pid}-{start}"
        self.clock_id = f"{host}-{_boot_id()}-{pid}-monotonic"
        self.path = directory / f"{self.run_id}.jsonl"
        self.written = 0
        self.dropped = 0
        self.faults = 0
        self._key = _recording_key(directory)
        self.tag_key_id = hashlib.sha256(b"token_tag" + self._key).hexdigest()[:16]
        self._queue: deque[dict[str, Any]] = deque()
        self._wake = threading.Event()
        self._stop = False
        self._lock = threading.Lock()
        # Unbuffered: a process that forks must not carry half-written lines that its child writes once more.
        self._file = self.path.open("xb", buffering=0)
        self._pending = bytearray()
        self._thread = threading.Thread(target=self._drain, name="forensics-recorder", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def write(self, kind: str, **fields: Any) -> None:
        """Queue one record. Fields that are None are left out: absence is how the contract says 'not known'.

        So run_id=None writes a part that names no run, for a process that does not know it.
        """
        if len(self._queue) >= QUEUE_LIMIT or self._stop:
            self.dropped += 1
            return
        record = {"kind": kind, "run_id": self.run_id, "replica_id": self.replica_id, "ts": round(time.time(), 6)}
        record |= fields
        record = {name: value for name, value in record.items() if value is not None}
        record["mono_ns"] = time.monotonic_ns()
        self._queue.append(record)

    def token_tag(self, position: int, token_id: int) -> str:
        """Return the tag of a token at an output position: equal tags are equal tokens, within one key."""
        message = f"{position}:{token_id}".encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:16]

    def guard(self, hook: Callable[P, R]) -> Callable[P, R | None]:
        """Wrap a hook so that its faults are counted and written, and never fail a request."""

        @functools.wraps(hook)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return hook(*args, **kwargs)
            except Exception as fault:  # noqa: BLE001 - whatever it is, the request goes on
                self.faults += 1
                if self.faults <= MAX_FAULTS_WRITTEN:
                    name = getattr(hook, "__name__", type(hook).__name__)
                    detail = {"hook": name, "fault": f"{type(fault).__name__}: {fault}", "count": self.faults}
                    self.write("event", what="recorder_fault", detail=detail)
                return None

        return guarded

    def close(self) -> None:
        """Write what is queued and close the file. Safe to call twice."""
        if self._stop:
            return
        self._stop = True
        self._wake.set()
        self._thread.join(timeout=10)
        atexit.unregister(self.close)

    def wake(self) -> None:
        """Ask the writer thread to write what is queued now; returns at once."""
        self._wake.set()

    def flush(self, timeout: float = 5.0) -> None:
        """Wait until all that was queued so far is on disk, at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        self._wake.set()
        while self._queue and time.monotonic() < deadline:
            time.sleep(0.01)
        with self._lock, contextlib.suppress(ValueError, OSError):
            self._write_out()

    def _drain(self) -> None:
        reported = 0
        while True:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            stopping = self._stop
            with self._lock:
                # A full or vanished disk: what is encoded waits, what is queued waits, then `write` drops and counts.
                with contextlib.suppress(OSError, ValueError):
                    while self._queue:
                        if len(self._pending) >= PENDING_LIMIT:
                            self._write_out()
                        self._append(self._queue.popleft())
                    if self.dropped > reported:
                        reported = self.dropped
                        self._append(self._drop_event(reported))
                    self._write_out()
                if stopping:
                    with contextlib.suppress(OSError, ValueError):
                        self._file.close()
                    return

    def _write_out(self) -> None:
        while self._pending:
            del self._pending[: self._file.write(self._pending)]

    def _append(self, record: dict[str, Any]) -> None:
        record |= {"seq": self.written, "writer": self.writer, "clock_id": self.clock_id}
        try:
            line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)
        except Exception as fault:  # noqa: BLE001 - one record that cannot be encoded must not end the thread
            self.faults += 1
            detail = {"hook": "encode", "fault": str(fault), "record_kind": record["kind"]}
            line = json.dumps(
                self._envelope("event") | {"what": "recorder_fault", "detail": detail, "seq": self.written}
            )
        self._pending += line.encode("utf-8", "backslashreplace") + b"\n"
        self.written += 1

    def _drop_event(self, count: int) -> dict[str, Any]:
        return self._envelope("event") | {"what": "drops", "detail": {"dropped": count}}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "kind": kind,
            "run_id": self.run_id,
            "replica_id": self.replica_id,
            "ts": round(time.time(), 6),
            "mono_ns": time.monotonic_ns(),
            "writer": self.writer,
            "clock_id": self.clock_id,
        }


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return "unknown-boot"


def _recording_key(directory: Path) -> bytes:
    """Return the key of this recording, shared by all processes that write into the directory.

    It stays on the recording host: whoever has it can test guesses of tokens against tags.
    """
    path = directory / ".token_tag_key"
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        for _ in range(100):  # another process is between create and write
            if len(key) == 32:
                return key
            time.sleep(0.01)
            key = path.read_bytes()
        raise OSError(f"{path}: not a 32-byte key; delete it to start a new recording") from None
    key = secrets.token_bytes(32)
    with os.fdopen(handle, "wb") as file:
        file.write(key)
    return key
