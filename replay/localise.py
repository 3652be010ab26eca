"""Which operator: the first whose output differs, those that differ by themselves, and what each of them restores.

All in one pass, the one that carries the difference; passes before it are the incident's, passes after it the
reference's. Hashes diverge once and stay so: the first that differs need not be the one that counts. So every operator
is also run on the reference's own rows as its input (those that still give other bits differ by themselves, the others
only pass it on), and the reference's output of each is put into the incident's pass: activation patching. Its measure
is the float64 contrast of effects.py. What operators restore that only pass the difference on is printed beside it: by
that share alone they could not be told from the cause. Standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from replay.exchange import pin_not_taken
from replay.trial import Treatment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replay.trial import Trace
    from replay.verdict import History
    from replay.workbench import Bench

MOST = 24
"""Trials that localising may take."""
MOST_LAYERS, MOST_RELAYS = 8, 4


@dataclass(frozen=True)
class Patched:
    """Operators whose output in the incident's pass was replaced by the reference's, together, and what came of it.

    layers: () outside of the layers. share: of the contrast's difference that was restored, 1 is all, None where the
    contrast does not differ or could not be taken. token: whose came out at the flip, incident, reference or neither.
    """

    operator: str
    layers: tuple[int, ...]
    share: float | None
    token: str | None


@dataclass(frozen=True)
class Localised:
    """Where in pass `at` the difference arises, None where that is open, and `detail` says why.

    operators: how many were watched; equal: how many gave equal bits; first: the first that did not. origins: those
    that differ by themselves, by role, then single layers of the one that restores most; relays: some that only pass it
    on, for comparison; null_holds: whether patching all operators with equal output changed no bit.
    """

    at: int | None
    operators: int
    equal: int
    first: str | None
    origins: tuple[Patched, ...]
    relays: tuple[Patched, ...]
    null_holds: bool | None
    detail: str


def localise(bench: Bench, history: History) -> Localised:
    """Return where the difference arises. Runs at most MOST trials, and says so before the first."""
    if bench.case.engine.get("engine") != "transformers":
        return _open("this version sees the operators of transformers only")
    if history.carried_by == "open":
        return _open(f"which pass to look at is not known: {history.detail}")
    at = history.first_pass if history.carried_by == "history" else bench.count - 1
    if at is None:
        return _open(f"which of the earlier passes carries the difference is not known: {history.detail}")
    bench.say(f"localise: operators of pass {at}; at most {min(MOST, bench.left)} trials more")
    with bench.within(MOST):
        return _Pass(bench, at, history.carried_by == "both").judged()


def _open(why: str, at: int | None = None) -> Localised:
    return Localised(at, 0, 0, None, (), (), None, why)


class _Unknown(Exception):  # noqa: N818 - what happened, not a fault
    """A trial gave nothing to compare; the message says why."""


class _Pass:
    """One pass under the incident's and under the reference's plan, all else equal."""

    def __init__(self, bench: Bench, at: int, both: bool) -> None:
        self.bench, self.at, self.both = bench, at, both
        self.flip = bench.count - 1
        self.incident, self.reference = bench.plans()

    def judged(self) -> Localised:
        try:
            self.mine = self._ran("the incident's, watched")
            name, donor = f"localise: pass {self.at}: the reference's, watched", self._donor()
            self.theirs = self._usable(self.bench.trial(name, donor))
            if problem := self._disturbed():
                return _open(problem, self.at)
            return self._found()
        except _Unknown as unknown:
            return _open(str(unknown), self.at)

    def _found(self) -> Localised:
        theirs, names = dict(self.theirs.activations), [name for name, _ in self.mine.activations]
        if theirs.keys() != set(names):
            return _open("the two arms do not run the same operators in this pass", self.at)
        differing = [name for name, digest in self.mine.activations if theirs[name] != digest]
        equal = [name for name in names if name not in differing]
        if not differing:
            return _open("every operator of this pass gives equal bits in both arms", self.at)
        forced = self._ran("every operator on the reference's input", names)
        if forced.logits_sha256[self.flip :] != self.theirs.logits_sha256[self.flip :]:
            return _open("with all outputs of the reference the pass did not give the reference's logits", self.at)
        origins = [name for name, digest in forced.activations if theirs[name] != digest]
        relays = [name for name in differing if name not in origins]
        detail = "passes before it carry a part too; this is of this pass alone" if self.both else ""
        shown, chosen, held = [], [], None
        try:
            shown += [self._patched(group) for group in by_role(origins)]
            held = self._null_holds(equal)
            chosen += [self._patched([name]) for name in spread(relays, MOST_RELAYS)]
            shown += self._layers(shown)
        except _Unknown as unknown:
            detail = "; ".join(part for part in (detail, f"not all was tried: {unknown}") if part)
        return Localised(
            self.at, len(names), len(equal), differing[0], tuple(shown), tuple(chosen), held, detail
        )  # fmt: skip

    def _layers(self, roles: Sequence[Patched]) -> list[Patched]:
        """Return the single layers of the role that restores most, where it has several and they are few."""
        most = max(roles, key=lambda one: one.share or 0.0, default=None)
        if most is None or not 1 < len(most.layers) <= MOST_LAYERS:
            return []
        return [self._patched([f"layers.{layer}.{most.operator}"]) for layer in most.layers]

    def _null_holds(self, equal: Sequence[str]) -> bool | None:
        if not equal:
            return None
        return self._ran(f"{len(equal)} operators of equal output patched", equal).same_bits(
            self.mine, len(self.mine.tokens)
        )

    def _patched(self, names: Sequence[str]) -> Patched:
        role, layers = names[0].rpartition(".")[2], tuple(int(name.split(".")[1]) for name in names if "." in name)
        trace = self._ran(f"{words(role, layers)} of the reference", names)
        contrasts = trace.contrast, self.mine.contrast, self.theirs.contrast
        share = None
        if None not in contrasts:
            got, start, end = (float(value or 0.0) for value in contrasts)
            share = (got - start) / (end - start) if end != start else None
        return Patched(role, layers, share, self._whose(trace))

    def _whose(self, trace: Trace) -> str | None:
        if len(trace.tokens) <= self.flip:
            return None
        arms = dict(zip((one.tokens[self.flip] for one in self.bench.arms), ("incident", "reference"), strict=True))
        return arms.get(trace.tokens[self.flip], "neither")

    def _disturbed(self) -> str | None:
        """Return what watching itself changed: where one of the two runs is an arm, it has to give that arm's bits."""
        pairs = ((self.mine, self.bench.arms[0], self.at == self.flip), (self.theirs, self.bench.arms[1], not self.at))
        changed = any(is_arm and not trace.same_bits(arm, self.bench.count) for trace, arm, is_arm in pairs)
        return "watching the operators changed the bits" if changed else None

    def _donor(self) -> Treatment:
        return Treatment(self.reference, self.incident if self.at else None, self.at, watched=self.at)

    def _ran(self, what: str, patched: Sequence[str] = ()) -> Trace:
        """Run the incident's pass among its own earlier passes and the reference's later ones. Raises _Unknown."""
        last = self.at == self.flip
        treatment = Treatment(
            self.incident if last else self.reference,
            None if last else self.incident,
            0 if last else self.at + 1,
            watched=self.at,
            donor=self.reference if patched else None,
            patched=tuple(patched),
        )
        return self._usable(self.bench.trial(f"localise: pass {self.at}: {what}", treatment))

    def _usable(self, trace: Trace) -> Trace:
        if problem := trace.missing or pin_not_taken(trace):
            raise _Unknown(problem)
        return trace


def by_role(names: Sequence[str]) -> list[list[str]]:
    """Return operators in groups of one role each, in the order in which the roles come first."""
    roles: dict[str, list[str]] = {}
    for name in names:
        roles.setdefault(name.rpartition(".")[2], []).append(name)
    return list(roles.values())


def spread(names: Sequence[str], most: int) -> list[str]:
    """Return at most so many, evenly spread, the first among them."""
    return [names[at * len(names) // most] for at in range(most)] if len(names) > most else list(names)


def words(role: str, layers: Sequence[int]) -> str:
    """Return 'attention of layer 0', 'down of layers 0, 1', 'lm_head'."""
    if not layers:
        return role
    return f"{role} of layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
