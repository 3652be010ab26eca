"""Which records of a run go to disk: all, one engine step in N, or those around a trigger. Whole engine steps, always.

A step's batch composition is its evidence, so the batch record and all step records of an engine step share one fate.
What is left out is counted: `thinned` is policy, `drops` is loss.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from replay.triggers import Triggers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from replay.policy import Policy

Record = dict[str, Any]

ALWAYS: Final = ("engine", "request", "event")
"""Kinds that are never left out: what ran, what was asked and answered, what happened."""
RING_BYTES: Final = 128 << 20
"""Encoded bytes that the ring may hold. Beyond it the oldest steps leave early; a trigger says how far back it got."""


class Held(NamedTuple):
    """A record that waits in the ring, encoded: the dictionaries would cost the server's garbage collector."""

    step: int | None
    mono_ns: int
    kind: str
    line: str


class Ring:
    """The last seconds of records, encoded, by engine step. A step leaves as a whole."""

    def __init__(self, seconds: float) -> None:
        self._keep_ns = int(seconds * 1e9)
        self._steps: OrderedDict[Any, list[Held]] = OrderedDict()
        self._bytes = 0

    def hold(self, record: Record, line: str) -> None:
        """Take a record. One without an engine step stands alone."""
        step = record.get("engine_step")
        held = Held(step, record["mono_ns"], record["kind"], line)
        self._steps.setdefault(object() if step is None else step, []).append(held)
        self._bytes += len(line)

    def expire(self, now_ns: int) -> Iterator[str]:
        """Let go of steps whose last record is too old, or that do not fit; yield the kind of each record."""
        while self._steps:
            oldest = next(iter(self._steps.values()))
            too_many = self._bytes > RING_BYTES and len(self._steps) > 1
            if oldest[-1].mono_ns >= now_ns - self._keep_ns and not too_many:
                return
            self._steps.popitem(last=False)
            for held in oldest:
                self._bytes -= len(held.line)
                yield held.kind

    def empty(self) -> list[Held]:
        """Return all that is held, in order, and hold nothing."""
        held = [one for entries in self._steps.values() for one in entries]
        self._steps.clear()
        self._bytes = 0
        return held

    def __len__(self) -> int:
        return sum(map(len, self._steps.values()))


class Retention:
    """Sifts the records of one run, in order. `encode`: record → line. `thinned`: counts records left out, by kind."""

    def __init__(self, policy: Policy, encode: Callable[[Record], str], thinned: Counter[str]) -> None:
        self._policy, self._encode = policy, encode
        self._ring = Ring(policy.ring_s) if policy.ring_s else None
        self._triggers = Triggers(policy.triggers)
        self._window: _Window | None = None
        self._writing: int | None = None
        self.thinned = thinned

    def sift(self, record: Record) -> Iterator[str]:
        """Yield the lines that are to be written now that this record is there."""
        if self._ring is None and self._policy.sample == 1:
            yield self._encode(record)
            return
        now, step = record["mono_ns"], record.get("engine_step")
        if self._window and now >= self._window.until_ns and (step is None or step != self._writing):
            yield self._end_window(record)
        if record["kind"] in ALWAYS:
            yield self._encode(record)
        elif self._window or (step is not None and step == self._writing) or self._sampled(step):
            self._writing = step
            if self._window:
                self._window.records += 1
            yield self._encode(record)
        elif self._ring is not None:
            self._ring.hold(record, self._encode(record))
            self.thinned.update(self._ring.expire(now))
        else:
            self.thinned[record["kind"]] += 1
        if self._ring is not None:
            for name, facts in self._triggers.pulled(record):
                yield from self._trigger(name, facts, record)

    def end(self, mono_ns: int, ts: float) -> Iterator[str]:
        """The run ends: close the window, let go of the ring."""
        if self._window:
            yield self._end_window({"mono_ns": mono_ns, "ts": ts})
        if self._ring is not None:
            self.thinned.update(held.kind for held in self._ring.empty())

    @property
    def held(self) -> int:
        """Records in memory whose fate is open."""
        return 0 if self._ring is None else len(self._ring)

    def _sampled(self, step: int | None) -> bool:
        """Every Nth engine step is kept, with a ring too. What has no engine step is left to the ring, if any."""
        if step is None:
            return self._ring is None
        return self._policy.sample > 1 and step % self._policy.sample == 0

    def _trigger(self, name: str, facts: Record, record: Record) -> Iterator[str]:
        assert self._ring is not None
        assert self._policy.ring_s is not None
        known = self._window is not None and name in self._window.pulled
        window = self._window = self._window or _Window()
        window.until_ns = record["mono_ns"] + int(self._policy.ring_s * 1e9)
        window.pulled[name] += 1
        if known:
            return  # counted in the event that ends the window
        self.thinned.update(self._ring.expire(record["mono_ns"]))
        held = self._ring.empty()
        window.records += len(held)
        steps = [one.step for one in held if one.step is not None]
        told = {name: record[name] for name in ("req_id", "engine_step") if name in record}
        detail = {
            "trigger": name,
            **facts,
            "records": len(held),
            "seconds_back": round((record["mono_ns"] - held[0].mono_ns) / 1e9, 3) if held else 0.0,
        }
        if steps:
            detail["from_engine_step"] = min(steps)
            self._writing = steps[-1]
        yield self._encode(_event("trigger", detail, record) | told)
        for one in held:
            yield one.line

    def _end_window(self, record: Record) -> str:
        window, self._window = self._window, None
        assert window is not None
        detail = {"triggers": dict(window.pulled), "records": window.records}
        return self._encode(_event("trigger_window_end", detail, record))


class _Window:
    """The time after a trigger in which all is written. `pulled`: how often each trigger was."""

    def __init__(self) -> None:
        self.until_ns = 0
        self.records = 0
        self.pulled: Counter[str] = Counter()


def _event(what: str, detail: Record, record: Record) -> Record:
    return {"kind": "event", "ts": record["ts"], "what": what, "detail": detail, "mono_ns": record["mono_ns"]}
