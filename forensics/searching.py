"""Which requests a person means who has a time, a replica, a prompt or an answer, but no request id."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from forensics.errors import BAD_INPUT, USAGE, ForensicsError
from forensics.text import moment, printable

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from forensics.store import Store

UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
RELATIVE: Final = re.compile(r"([0-9]{1,9})\s*([smhd])")
CLOCK: Final = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?")
NUMBER: Final = re.compile(r"[0-9]{1,11}([.][0-9]{1,9})?")
SHORTEST_HASH: Final = 8
FORMS: Final = "give 2026-11-23T14:32Z, 14:32 (on the day of the newest request), 2h (before it), or Unix seconds"


@dataclass(frozen=True)
class Scope:
    """Which part of a store a question is about. Times in Unix seconds; a request counts if any of it lies between.

    replica: the whole name. model: a part of the served or real name, in any case. None asks nothing.
    """

    since: float | None = None
    until: float | None = None
    replica: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Marks:
    """What is known of a request besides where and when. None asks nothing.

    part_of_id: of the engine's or the client's id. prompts: sha256 of texts that it may be. output: a part of the text.
    The hashes may be cut to their beginnings; that of the prompt is the raw text's, the effective text's or the ids'.
    """

    part_of_id: str | None = None
    prompts: tuple[str, ...] | None = None
    prompt_sha256: str | None = None
    output: str | None = None
    output_sha256: str | None = None
    finish: str | None = None


def scope(
    store: Store, since: str | None = None, until: str | None = None,
    replica: str | None = None, model: str | None = None,
) -> Scope:  # fmt: skip
    """Return the scope that a person states. Raises ForensicsError (exit 2) for what is no time."""
    newest = None
    if since is not None or until is not None:
        rows = store.ask("newest")
        newest = rows["newest"].item() if len(rows) else None
    begin = None if since is None else instant(since, newest, "--since")
    end = None if until is None else instant(until, newest, "--until")
    if begin is not None and end is not None and begin > end:
        raise ForensicsError(f"--since {moment(begin)} is after --until {moment(end)}", USAGE, "exchange them")
    return Scope(begin, end, replica, model)


def instant(text: str, newest: float | None, option: str) -> float:
    """Return the Unix seconds that a text stands for. Times without a zone are UTC, as in everything that we print."""
    stated = text.strip()
    if relative := RELATIVE.fullmatch(stated):
        span = timedelta(**{UNITS[relative[2]]: int(relative[1])})
        return _anchor(newest, option) - span.total_seconds()
    if NUMBER.fullmatch(stated) and len(stated.partition(".")[0]) >= 9:
        return float(stated)
    try:
        if clock := CLOCK.fullmatch(stated):
            day = datetime.fromtimestamp(_anchor(newest, option), UTC)
            hour, minute, second = (int(part or 0) for part in clock.groups())
            return day.replace(hour=hour, minute=minute, second=second, microsecond=0).timestamp()
        if re.match(r"[0-9]{4}-[0-9]", stated):
            when = datetime.fromisoformat(stated)
            return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    raise ForensicsError(f"{option} {printable(text, 80)!r} is no time", USAGE, FORMS)


def prompt_hashes(text: str | None, file: Path | None) -> tuple[str, ...] | None:
    """Return sha256 of a prompt in UTF-8; of a file also without its last line end, which editors add."""
    if text is not None and file is not None:
        raise ForensicsError("--prompt and --prompt-file both given", USAGE, "give one of them")
    if file is None:
        return None if text is None else (hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest(),)
    try:
        raw = file.read_bytes()
    except OSError as fault:
        raise ForensicsError(f"{file}: cannot be read: {fault.strerror}", BAD_INPUT, "name a text file") from None
    texts = {raw, raw.removesuffix(b"\n").removesuffix(b"\r")}
    return tuple(hashlib.sha256(one).hexdigest() for one in sorted(texts))


def part_of_hash(text: str | None, option: str) -> str | None:
    """Return the beginning of a hash, checked: hexadecimal and long enough to mean something."""
    if text is not None and not re.fullmatch(rf"[0-9a-fA-F]{{{SHORTEST_HASH},64}}", text):
        hint = f"give its first {SHORTEST_HASH} to 64 hexadecimal digits"
        raise ForensicsError(f"{option} {printable(text, 80)!r} is no sha256", USAGE, hint)
    return text


def find(store: Store, within: Scope, marks: Marks = Marks(), limit: int | None = None) -> pl.DataFrame:
    """Return the requests that fit, oldest first; column `found`: how many there are without the limit."""
    asked: dict[str, Any] = vars(within) | vars(marks)
    prompts = None if marks.prompts is None else list(marks.prompts)
    return store.ask("find", **asked | {"prompts": prompts, "limit": limit})


def _anchor(newest: float | None, option: str) -> float:
    if newest is None:
        raise ForensicsError(f"{option}: no request on record has a time", USAGE, "give no time: none can be compared")
    return newest
