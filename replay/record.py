"""The recorder of one run of an engine, and `emit`, by which a gateway adds what it knows of a request.

The serving path only appends to a queue; a thread writes (`writer`). A fault in here never reaches the engine: hooks
are wrapped in `Recorder.guard`, records that do not fit are dropped and counted, and both show up in the log as events.
"""

from __future__ import annotations

import array
import hashlib
import os
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from replay.canonical import raw_prompt_sha256 as raw_prompt_sha256
from replay.policy import Policy, say
from replay.secret import RecordingKey
from replay.triggers import on_signal, signal_obstacle
from replay.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterable


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


class Recorder(Writer):
    """Writes one run of one engine. Thread-safe; never raises into the caller after construction.

    with_ids: write token ids (prompt, output, top) and not only hashes and tags. Off by default:
    ids are as sensitive as the text. Default from FORENSICS_RECORD_IDS=1.
    with_logits_sha256: hash the whole row of raw logits of each token: proves equal bits, and costs a pass over the
    vocabulary a token. Default from FORENSICS_RECORD_LOGITS_SHA256=1.
    policy: what is kept, and in which files. Default from FORENSICS_RECORD_*, see docs/recording.md.
    """

    def __init__(
        self,
        directory: Path,
        engine: str,
        *,
        with_ids: bool | None = None,
        replica_id: str | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.with_ids = os.environ.get("FORENSICS_RECORD_IDS") == "1" if with_ids is None else with_ids
        self.with_logits_sha256 = os.environ.get("FORENSICS_RECORD_LOGITS_SHA256") == "1"
        self.replica_id = replica_id or os.environ.get("FORENSICS_REPLICA") or f"{socket.gethostname()}-{engine}"
        policy = policy or Policy.from_environment()
        obstacle = signal_obstacle() if "signal" in policy.triggers else None
        if obstacle:
            policy = replace(policy, triggers=tuple(name for name in policy.triggers if name != "signal"))
        directory.mkdir(parents=True, exist_ok=True)
        self.run_id, start_ns = _unused_stem(directory, engine)
        self._key = RecordingKey(directory)
        self.tag_key_id = self._key.id
        self.token_tag = self._key.token_tag
        identity = {"run_id": self.run_id, "replica_id": self.replica_id}
        super().__init__(directory, self.run_id, identity, policy, start_ns)
        if obstacle:
            say(f"{self.run_id}: SIGUSR2 will not be a trigger: {obstacle}")
            self.write("event", what="recorder_limits", detail={"not_observed": [f"trigger signal: {obstacle}"]})
        if "signal" in policy.triggers:
            on_signal(self._signalled)

    def _signalled(self) -> None:
        """Runs inside of a signal handler: only what cannot wait for a lock."""
        if not self._stop:
            self.write("event", what="signal", detail={"signal": "SIGUSR2"})


class Gateway(Writer):
    """The file of one process that knows requests, but not the engine's run: its lines carry none."""

    def __init__(self, directory: Path, name: str = "gateway") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        policy = replace(Policy.from_environment(), ring_s=None, triggers=(), sample=1)  # it sees no engine steps
        self.key = RecordingKey(directory)
        stem, start_ns = _unused_stem(directory, name)
        super().__init__(directory, stem, {}, policy, start_ns)


REQUIRED: Final = {"request": "req_id", "event": "what"}
OWNED: Final = {"seq", "writer", "clock_id", "mono_ns"}
MOST_SAID: Final = 5
_gateways: dict[tuple[int, Path], Gateway | None] = {}
_opening: dict[int, threading.Lock] = {}
_said: list[str] = []


def emit(kind: str, **fields: Any) -> None:
    """Add what a gateway or API process knows of a request to the recording, or an event. Never raises, never waits.

    kind: "request" with `req_id`, the id by which the caller knows it, or "event" with `what`. The other fields are
    those of schemas/request.v1.json and event.v1.json; `tenant`, `prompt` and `system_message` are hashed before
    anything keeps them. Writes into the folder that FORENSICS_RECORD names, a file a process; does nothing when it is
    not set. What cannot be recorded is said on stderr, five times at most. The first call of a process opens its file.
    """
    try:
        if (directory := configured_directory()) is not None and (gateway := _gateway(directory)) is not None:
            gateway.write(kind, **_hashed(kind, fields, gateway.key))
    except Exception as fault:  # noqa: BLE001 - whatever it is, the request goes on
        if len(_said) < MOST_SAID:
            _said.append(str(fault))
            say(f"emit: not recorded: {type(fault).__name__}: {fault}")


def _hashed(kind: str, fields: dict[str, Any], key: RecordingKey) -> dict[str, Any]:
    """Return the fields with hashes in the place of tenant, prompt and system message. Raises ValueError."""
    needed = REQUIRED.get(kind)
    if needed is None:
        raise ValueError(f"kind is {kind!r}, and a gateway knows only {' and '.join(REQUIRED)}")
    if not isinstance(fields.get(needed), str):
        raise ValueError(f"a record of kind {kind} needs {needed}=, a text")
    if owned := fields.keys() & OWNED:
        raise ValueError(f"{', '.join(sorted(owned))}: written by the recorder itself")
    if (tenant := fields.pop("tenant", None)) is not None:
        fields["tenant_sha256"] = key.tenant_sha256(str(tenant))
    for text in ("prompt", "system_message"):
        if (value := fields.pop(text, None)) is not None:
            fields["raw_prompt_sha256" if text == "prompt" else f"{text}_sha256"] = raw_prompt_sha256(value)
    return fields


def _gateway(directory: Path) -> Gateway | None:
    """Return this process's file, opened once; None after it could not be opened."""
    key = (os.getpid(), directory)
    if key not in _gateways:
        with _opening.setdefault(key[0], threading.Lock()):  # one a process: a fork may inherit a locked lock
            if key not in _gateways:
                try:
                    _gateways[key] = Gateway(directory)
                except BaseException:
                    _gateways[key] = None
                    raise
    return _gateways[key]


def _unused_stem(directory: Path, name: str) -> tuple[str, int]:
    """Return the stem of a run's files, and when it starts in Unix nanoseconds."""
    start_ns = time.time_ns()
    while True:
        stem = f"{name}-{start_ns // 1_000_000:x}-{os.getpid()}"
        if not any(directory.glob(f"{stem}-*")):
            return stem, start_ns
        start_ns += 1_000_000  # a second recorder of this process in the same millisecond
