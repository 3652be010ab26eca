"""The bench on which a case is tried: runs plans, keeps what ran, compares it with both arms. No judgement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from replay.case import Arm, Case, Plan
from replay.trial import Trace
from replay.verdict import Ran

FOLLOWS = {"batch.row": "batch.rows"}
"""A position exists only inside a launch, so it has no exchange of its own where the rows are exchanged."""

Run = Callable[[Sequence[Plan]], list[Trace]]


@dataclass(frozen=True)
class Swap:
    """Both exchanges of a set S: incident with the reference's values, and the other way round."""

    names: tuple[str, ...]
    restored: Trace
    induced: Trace
    restores_bits: bool
    induces_bits: bool
    restores_token: bool
    induces_token: bool

    @property
    def proven(self) -> bool:
        """Return whether both exchanges gave the other arm bit for bit."""
        return self.restores_bits and self.induces_bits and not self.mismatch

    @property
    def failed(self) -> bool:
        """Return whether an exchange ran as pinned and did not give the other arm: the set is settled, not proven."""
        ran = ((self.restored, self.restores_bits), (self.induced, self.induces_bits))
        return any(trace.refused is None and pin_not_taken(trace) is None and not bits for trace, bits in ran)

    @property
    def refused(self) -> str | None:
        """Return why one of the exchanges could not be executed."""
        return self.restored.refused or self.induced.refused

    @property
    def mismatch(self) -> str | None:
        """Return the first pin that did not take."""
        return pin_not_taken(self.restored) or pin_not_taken(self.induced)


def pin_not_taken(trace: Trace) -> str | None:
    """Return 'factor: asked, seen' for the first factor that was read back with another value, or not at all."""
    if trace.refused is not None:
        return None
    for name, value in sorted(trace.plan.items()):
        if trace.observed.get(name) != value:
            return f"{name}: {value} was asked for, {trace.observed.get(name, 'nothing')} was read back"
    return None


class Bench:
    """Runs trials of one case. `incident`, `reference` and `count` are set once the controls have passed."""

    def __init__(self, case: Case, run: Run, say: Callable[[str], None] = lambda _line: None) -> None:
        self.case, self._run, self.say = case, run, say
        self.done: list[tuple[str, Trace]] = []
        self.count = 0
        self.incident: Trace | None = None
        self.reference: Trace | None = None

    def run(self, named: Sequence[tuple[str, Plan]]) -> list[Trace]:
        """Run plans under names."""
        for number, (name, _) in enumerate(named, len(self.done) + 1):
            self.say(f"trial {number}: {name}")
        traces = self._run([plan for _, plan in named])
        self.done += zip((name for name, _ in named), traces, strict=True)
        return traces

    def swaps(self, sets: Sequence[tuple[str, ...]]) -> list[Swap]:
        """Run both exchanges of each set, all in one go."""
        incident, reference = self.case.incident, self.case.reference
        plans = [
            (
                (f"restored: incident with {', '.join(names)} of the reference", exchange(incident, reference, names)),
                (f"induced: reference with {', '.join(names)} of the incident", exchange(reference, incident, names)),
            )
            for names in sets
        ]
        traces = self.run(list(chain.from_iterable(plans)))
        return [
            self._swap(names, *pair)
            for names, pair in zip(sets, zip(traces[::2], traces[1::2], strict=True), strict=True)
        ]

    def _swap(self, names: tuple[str, ...], restored: Trace, induced: Trace) -> Swap:
        assert self.incident
        assert self.reference
        token = {arm: trace.same_tokens(arm_trace, self.count) for arm, trace, arm_trace in (
            ("restored", restored, self.reference), ("induced", induced, self.incident))}  # fmt: skip
        return Swap(
            names,
            restored,
            induced,
            token["restored"] and restored.same_bits(self.reference, self.count),
            token["induced"] and induced.same_bits(self.incident, self.count),
            token["restored"],
            token["induced"],
        )

    def racing(self) -> bool:
        """Return whether any process gave other bits when it ran its first plan again."""
        return any(trace.repeatable is False for _, trace in self.done)

    def filed(self) -> tuple[Ran, ...]:
        """Return all trials as the verdict files them."""
        return tuple(self._filed(name, trace) for name, trace in self.done)

    def _filed(self, name: str, trace: Trace) -> Ran:
        known = trace.refused is None and self.incident is not None and self.reference is not None and self.count
        return Ran(
            name,
            trace.plan,
            trace.observed,
            trace.details,
            trace.tokens,
            trace.logits_sha256,
            self._equals(trace, Trace.same_tokens) if known else None,
            self._equals(trace, Trace.same_bits) if known else None,
            trace.refused,
        )

    def _equals(self, trace: Trace, same: Callable[[Trace, Trace, int], bool]) -> str:
        assert self.incident
        assert self.reference
        pair = same(trace, self.incident, self.count), same(trace, self.reference, self.count)
        return {(True, True): "both", (True, False): "incident", (False, True): "reference"}.get(pair, "neither")


def covered(name: str, names: Sequence[str]) -> bool:
    """Return whether exchanging these factors takes the named one along."""
    return name in names or FOLLOWS.get(name) in names


def exchange(arm: Arm, other: Arm, names: Sequence[str]) -> Plan:
    """Return the arm's plan with the named factors as the other arm has them; what is not on record is left unset.

    A position exists only inside a launch: where S shrinks the launch below it, the request takes the last row.
    """
    plan = {name: value for name, value in arm.plan.items() if name not in names}
    plan |= {name: other.plan[name] for name in names if name in other.plan}
    rows, row = plan.get("batch.rows"), plan.get("batch.row")
    if "batch.row" not in names and rows is not None and row is not None and int(row) >= int(rows):
        plan["batch.row"] = str(int(rows) - 1)
    return plan
