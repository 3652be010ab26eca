"""A request, the run it is compared with and why that one, and where the two part."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import polars as pl

from forensics import communicators
from forensics.cohort import ALONE, CALM, Cohorts, load_of, nearest, runs_asked_the_same, runs_of_same_x
from forensics.errors import ForensicsError
from forensics.evidence import Evidence, gather
from forensics.findings import ADMISSION, Citation
from forensics.flip import Flip, Standing, compare_outputs, flip_at
from forensics.surroundings import with_surroundings
from forensics.text import printable, shell

if TYPE_CHECKING:
    from forensics.communicators import Communicator
    from forensics.counterfactual import Counterfactual
    from forensics.filed import Filed
    from forensics.store import Store
    from forensics.timeline import Thresholds

NO_IDEA = "`forensics incidents` lists requests that diverged"
REACH = 32
"""Engine steps before a request's first in which what ended still matters: a limit that was cut has yet to recover. A
choice."""
Pair = tuple[int, dict[str, Any] | None, dict[str, Any] | None]


@dataclass(frozen=True)
class Incident:
    """A request, what it is compared with and why that, and where the two part.

    cohort: other runs of the same request; named: the reference was chosen by the user.
    cohorts: how many requests each of the two keys gives. counterfactuals: causes thought away, once they are found.
    verdicts: those on file for this pair.
    """

    target: Evidence
    reference: Evidence | None
    rule: str
    standing: Standing
    flip: Flip | None = None
    cohort: tuple[Evidence, ...] = field(default_factory=tuple)
    named: bool = False
    cohorts: Cohorts = ALONE
    counterfactuals: tuple[Counterfactual, ...] = ()
    verdicts: tuple[Filed, ...] = ()

    def arms(self) -> tuple[Evidence, Evidence]:
        """Return target and reference. Only for incidents that have a reference."""
        if self.reference is None:
            raise ValueError("an incident without a reference has one arm")
        return self.target, self.reference

    def lived(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the steps of both arms up to and including the flip; all steps where no flip is located."""
        target, reference = self.arms()
        last = (None, None) if self.flip is None else (self.flip.target_step, self.flip.reference_step)
        return tuple(  # type: ignore[return-value]
            arm.steps if step is None else arm.steps.filter(pl.col("step") <= step)
            for arm, step in zip((target, reference), last, strict=True)
        )

    @cached_property
    def fabric(self) -> tuple[tuple[Communicator, ...], ...]:
        """The communicators of both arms, up to and including the flip."""
        last = [steps["engine_step"].max() for steps in self.lived()]
        return communicators.read(self.arms(), last)  # type: ignore[arg-type]

    def near(self, which: int, first: int, last: int) -> bool:
        """Return whether engine steps of an arm (0 target, 1 reference) can have had a say in its launches."""
        numbers = self.lived()[which]["engine_step"].drop_nulls().to_list()
        return bool(numbers) and first <= max(numbers) and last >= min(numbers) - REACH

    def within(self, which: int, first: int, last: int) -> tuple[int, tuple[int, ...]]:
        """Return the target's own steps in which an arm ran these engine steps: where they begin, and all of them."""
        numbers = self.lived()[which]["engine_step"].drop_nulls().to_list()
        own = 0
        inside: list[int] = []
        for _, *rows in self.paired():
            own = rows[0]["step"] if rows[0] else own
            row = rows[which]
            if row and row["engine_step"] is not None and first <= row["engine_step"] <= last:
                inside.append(own)
        return (ADMISSION if first < min(numbers, default=first) or not inside else inside[0]), tuple(inside)

    def cite_collective(self, which: int, rank: int | None, engine_step: int) -> tuple[Citation, ...]:
        """Return where an arm's first collective of an engine step stands, on one rank or on any."""
        rows = self.arms()[which].around.collectives.filter(pl.col("engine_step") == engine_step)
        rows = rows if rank is None else rows.filter(pl.col("rank") == rank)
        return tuple(Citation(path, line) for path, line in rows.select("source_path", "line").head(1).iter_rows())

    def paired(self) -> list[Pair]:
        """Return (output position that the step works towards, target step, reference step) up to the flip.

        Steps that work towards one token are paired in order; one that has no partner (another number of
        prefill chunks, a recomputation) stands alone.
        """
        ours, theirs = (_by_next_token(steps) for steps in self.lived())
        return [
            (position, one, other)
            for position in sorted(ours.keys() | theirs.keys())
            for one, other in zip_longest(ours.get(position, ()), theirs.get(position, ()))
        ]

    def token_pairs(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return the two steps that chose each output token, up to and including the flip."""
        target, reference = self.arms()
        last = None if self.flip is None else self.flip.token_index
        theirs = {row["token_index"]: row for row in reference.tokens().iter_rows(named=True)}
        return [
            (row, theirs[row["token_index"]])
            for row in target.tokens().iter_rows(named=True)
            if row["token_index"] in theirs and (last is None or row["token_index"] <= last)
        ]


def _by_next_token(steps: pl.DataFrame) -> dict[int, list[dict[str, Any]]]:
    """Group steps by the output token that they work towards."""
    groups: dict[int, list[dict[str, Any]]] = {}
    towards = 0
    for row in steps.iter_rows(named=True):
        if row["token_index"] is not None:
            towards = row["token_index"]
        groups.setdefault(towards, []).append(row)
        if row["token_index"] is not None:
            towards += 1
    return groups


def find_request(store: Store, name: str) -> dict[str, Any]:
    """Return the one request of that name (the engine's id, the client's, or RUN/ID). Raises for none or several."""
    rows = store.ask("request", req_id=name).to_dicts()
    exact = [row for row in rows if row["req_id"] == name]
    rows = exact if len(exact) == 1 else rows
    for cut in (at for at, char in enumerate(name) if char == "/" and not rows):
        found = store.ask("request", req_id=name[cut + 1 :]).to_dicts()
        rows = [row for row in found if row["run_id"] == name[:cut] and row["req_id"] == name[cut + 1 :]]
    if len(rows) == 1:
        return rows[0]
    shown = printable(name, 80)
    if rows:
        listed = "\n".join(f"  {shell(row['run_id'] + '/' + row['req_id'])}" for row in rows[:10])
        more = f"\n  … and {len(rows) - 10} more" if len(rows) > 10 else ""
        raise ForensicsError(f"{shown!r} names {len(rows)} requests:\n{listed}{more}", 2, "give one of these")
    runs = store.ask("step_owners", req_id=name)["run_id"].to_list()
    if runs:
        raise ForensicsError(
            f"{shown!r} has steps on record (run {printable(runs[0])}), but no request record", 2,
            "ingest the file that holds it; without it neither input nor output of the request is known",
        )  # fmt: skip
    near = store.ask("similar_ids", req_id=name)["req_id"].to_list()
    hint = f"did you mean {', '.join(printable(one, 80) for one in near[:5])}?" if near else NO_IDEA
    raise ForensicsError(f"no request {shown!r} in this store", 2, hint)


def assemble(store: Store, req_id: str, against: str | None, limits: Thresholds) -> Incident:
    """Collect target and reference, and settle whether and where their outputs differ.

    The reference comes from the runs with the same x. Only where none of them has another output, and one that was
    asked the same with another x does, it comes from those.
    """
    row = find_request(store, req_id)
    target = with_surroundings(store, gather(store, row, limits))
    same_x = runs_of_same_x(store, row, target.model_identity())
    same_asked = runs_asked_the_same(store, row, same_x)
    counted = Cohorts(len(same_x), len(same_asked))
    others = nearest(store, same_x, row, limits)
    if against is not None:
        reference = with_surroundings(store, gather(store, find_request(store, against), limits))
        if reference.identity == target.identity:
            raise ForensicsError(f"{req_id} and {against} are the same request", 2, "name another one with --against")
        hashes = (row["input_sha256"], reference.request["input_sha256"])
        rule = "named with --against"
        if None in hashes:
            rule += "; whether its x is the same is not on record"
        elif hashes[0] != hashes[1]:
            rule += "; it is another request: its x is not the same"
        return compare(target, reference, rule, others, named=True, cohorts=replace(counted, used="chosen"))
    used, key = "same x", "same x"
    differing = _differing(target, others)
    if same_asked and not differing:
        asked = nearest(store, same_asked, row, limits)
        if not others or _differing(target, asked):
            used, key, others, differing = "same asked", "same asked, other x", asked, _differing(target, asked)
    if not others:
        rule = "no other request with the same x, or asked the same, is on record"
        return Incident(target, None, rule, "no_reference")
    unused = same_asked if used == "same x" else same_x
    cohorts = replace(counted, used=used, other=unused[0]["req_id"] if unused else None)
    calm = min(differing or others, key=load_of)
    found = counted.same_x if used == "same x" else counted.same_asked
    left_out = f" (the nearest in time of {found})" if found > len(others) else ""
    looked_at = f"{len(differing)} of {len(others)} other run(s) ({key}){left_out} had another output"
    rule = f"{looked_at}: {CALM if load_of(calm)[0] < float('inf') else 'the earliest, as no launch is on record'}"
    return compare(target, with_surroundings(store, calm), rule, others, cohorts=cohorts)


def _differing(target: Evidence, others: tuple[Evidence, ...]) -> list[Evidence]:
    return [other for other in others if compare_outputs(target, other)[0] == "divergence"]


def compare(
    target: Evidence,
    reference: Evidence,
    rule: str,
    cohort: tuple[Evidence, ...],
    *,
    named: bool = False,
    cohorts: Cohorts = ALONE,
) -> Incident:
    """Settle whether and where the outputs of two runs differ."""
    standing, index = compare_outputs(target, reference)
    flip = None if index is None else flip_at(target, reference, index)
    return Incident(target, reference, rule, standing, flip, cohort, named, cohorts)
