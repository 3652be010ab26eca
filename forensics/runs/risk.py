"""Steps that stand one ulp from another answer, and how many answers would flip if the rounding were another.

A step is at risk where the chosen token leads the next best by at most so many ulps of the logit dtype. What such a
lead is worth is not assumed but counted: among twins (runs of one effective request), at steps with the same tokens
before and other bits, how often did a lead of that size end in another token? From these rates follows, for every
request, the chance that its answer changes if all of its launches had other bits: 1 - prod(1 - rate), with steps taken
as independent.
Where no twin with other bits is on record there is no rate, and no expectation is given.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from math import inf, prod
from typing import TYPE_CHECKING, Any

from forensics.flip import same_bits
from forensics.intervals import wilson
from forensics.margin import in_ulps
from forensics.runs.twins import cohorts
from forensics.searching import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from forensics.runs.twins import Cohort
    from forensics.store import Store

FORMAT = "forensics.risk/1"
LEADS = (0.0, 1.0, 2.0, 4.0, inf)
"""Upper ends of the classes of leads, in ulps: an exact tie, one ulp, two, up to four (a near tie), more."""

Steps = list[tuple[int, float]]
"""(output position, lead in ulps) of the steps of a request."""


@dataclass(frozen=True)
class Rate:
    """How often a lead of at most `ulps` (and more than the class before) ended in another token under other bits."""

    ulps: float
    flipped: int
    steps: int
    low: float
    high: float


@dataclass(frozen=True)
class AtRisk:
    """A request, or all of a replica or family. steps: with a known lead; at_risk, ties: of them.

    first: output position of the first step at risk. expected: of answers that change under other bits, with low and
    high from the intervals of the rates; None without rates.
    """

    name: str
    requests: int
    steps: int
    at_risk: int
    ties: int
    first: int | None
    expected: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Risk:
    """unknown: steps whose lead is not on record. rates: by class of lead, () where no twin has other bits."""

    ulps: float
    unknown: int
    whole: AtRisk
    rates: tuple[Rate, ...]
    requests: tuple[AtRisk, ...]
    replicas: tuple[AtRisk, ...]
    families: tuple[AtRisk, ...]
    format: str = FORMAT

    def document(self) -> dict[str, Any]:
        """Return it for `--format json`."""
        return asdict(self) | {
            "rates": [asdict(one) | {"ulps": None if one.ulps == inf else one.ulps} for one in self.rates]
        }


def risk(store: Store, within: Scope, ulps: float) -> Risk:
    """List the requests of the scope by their steps at risk. Rates come from all twins of the store."""
    leads: dict[tuple[str, str, str, str | None], Steps] = defaultdict(list)
    unknown = 0
    for row in store.ask("margins", **vars(within)).iter_rows(named=True):
        lead = None if row["margin"] is None or row["top_logit"] is None else in_ulps(
            row["margin"], row["top_logit"], row["logit_dtype"]
        )  # fmt: skip
        unknown += lead is None
        if lead is not None:
            leads[row["run_id"], row["replica_id"], row["req_id"], row["family"]].append((row["token_index"], lead))
    rates = _rates(cohorts(store, Scope()))
    requests = [_of(f"{key[0]}/{key[2]}", [steps], rates, ulps) for key, steps in leads.items()]
    worst = sorted((one for one in requests if one.at_risk), key=lambda one: (-(one.expected or 0), -one.at_risk))
    return Risk(
        ulps, unknown, _of("all", leads.values(), rates, ulps), rates,
        tuple(worst), tuple(_grouped(leads, 1, rates, ulps)), tuple(_grouped(leads, 3, rates, ulps)),
    )  # fmt: skip


def _grouped(leads: dict[Any, Steps], part: int, rates: tuple[Rate, ...], ulps: float) -> Iterator[AtRisk]:
    groups: dict[str, list[Steps]] = defaultdict(list)
    for key, steps in leads.items():
        if key[part] is not None:
            groups[key[part]].append(steps)
    for name, members in sorted(groups.items()):
        yield _of(name, members, rates, ulps)


def _of(name: str, requests: Iterable[Steps], rates: tuple[Rate, ...], ulps: float) -> AtRisk:
    members = list(requests)
    steps = [step for request in members for step in request]
    near = [position for position, lead in steps if lead <= ulps]
    chances = [
        sum(1 - prod(1 - share(rates[_class(lead)]) for _, lead in request) for request in members) if rates else None
        for share in (_share, lambda one: one.low, lambda one: one.high)
    ]  # fmt: skip
    return AtRisk(
        name,
        len(members),
        len(steps),
        len(near),
        sum(lead == 0 for _, lead in steps),
        min(near, default=None),
        *chances,
    )


def _share(one: Rate) -> float:
    return one.flipped / one.steps if one.steps else 0.0


def _class(lead: float) -> int:
    return next(place for place, end in enumerate(LEADS) if lead <= end)


def _rates(known: Iterable[Cohort]) -> tuple[Rate, ...]:
    flipped, steps = [0] * len(LEADS), [0] * len(LEADS)
    for cohort in known:
        calm, *others = sorted(cohort.twins, key=lambda one: one.load)
        for other in {(one.shapes(), one.answer): one for one in others}.values():
            for lead, flip in _outcomes(calm.steps, other.steps):
                steps[_class(lead)] += 1
                flipped[_class(lead)] += flip
    if not sum(steps):
        return ()
    return tuple(Rate(end, hits, of, *wilson(hits, of)) for end, hits, of in zip(LEADS, flipped, steps, strict=True))


def _outcomes(calm: list[dict[str, Any]], other: list[dict[str, Any]]) -> Iterator[tuple[float, bool]]:
    """Yield (lead in the calm run, whether the other one chose another token) at steps with other bits, to the flip."""
    theirs = {row["token_index"]: row for row in other if row["token_index"] is not None}
    for row in calm:
        rival = theirs.get(row["token_index"]) if row["token_index"] is not None else None
        if rival is None or None in (row["token_id"], rival["token_id"]):
            continue
        if same_bits(row, rival) is False and row["margin"] is not None and row["top_logits"]:
            lead = in_ulps(row["margin"], row["top_logits"][0], row["logit_dtype"])
            if lead is not None:
                yield lead, row["token_id"] != rival["token_id"]
        if row["token_id"] != rival["token_id"]:
            return
