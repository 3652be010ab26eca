"""Findings to links to a graded chain.

A link is graded from data: is the order known, does the dose match, is every named competitor ruled out?
  proven      a replay verdict shows it, bit for bit, in both directions
  supported   order known, dose matches, competitors looked for and ruled out (what lies on the way is none)
  consistent  order known, nothing contradicts, but a competitor is present or could not be tested
  possible    the order is not known
  refuted     a record contradicts it
Root cause: the earliest accepted finding without an accepted cause. A chain is as strong as its weakest link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.causes import CAUSES, CONDITIONS, competitors, upstream
from forensics.dose import CANNOT_TELL, dose
from forensics.findings import GRADES, Finding, Gap, Grade, Link, Rung

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forensics.causes import Competitors
    from forensics.filed import Filed
    from forensics.incident import Incident
    from forensics.plan_table import PlanTable

REPLAY = "a replay that forces the plan both ways"
SHAPE_FACTORS = ("batch.", "prefill.", "graph.")
"""Plan factors that are part of a launch's shape."""


def link(findings: Sequence[Finding], gaps: Sequence[Gap], incident: Incident, table: PlanTable) -> list[Link]:
    """Return a graded link for every pair of findings that CAUSES allows, in the order of CAUSES."""
    by_code = {finding.code: finding for finding in findings}
    graded: dict[str, list[Link]] = {}
    for effect in reversed(CAUSES):  # from the lowest rung up: what lies between cause and effect is graded already
        if effect in by_code:
            below = [one for links in graded.values() for one in links]
            causes = [by_code[code] for code in CAUSES[effect] if code in by_code]
            graded[effect] = _into(by_code[effect], causes, gaps, below, incident, table)
    return [one for effect in CAUSES for one in graded.get(effect, ())]


def _into(
    effect: Finding,
    causes: Sequence[Finding],
    gaps: Sequence[Gap],
    below: Sequence[Link],
    incident: Incident,
    table: PlanTable,
) -> list[Link]:
    """Grade the links into one effect. below: the links between the findings on lower rungs."""
    doses = {cause.code: dose(cause, effect, incident, table) for cause in causes}
    stand = [cause for cause in causes if cause.onset <= effect.onset and doses[cause.code][0] is not False]
    links = []
    for cause in causes:
        matches, why = doses[cause.code]
        order = f"order: {_when(cause)} then {_when(effect)}"
        if cause.onset > effect.onset:
            early = f"{effect.code} begins at step {effect.onset}, before {cause.code} at step {cause.onset}"
            links.append(Link(cause.code, effect.code, "refuted", (early,)))
        elif matches is False:
            links.append(Link(cause.code, effect.code, "refuted", (order, why)))
        else:
            rivals = competitors(cause, effect, stand, gaps, accepted(below))
            grade, raise_by = _grade(cause, effect, matches, rivals, incident, table)
            links.append(Link(cause.code, effect.code, grade, (order, why, *rivals.why()), raise_by))
    return links


def _grade(
    cause: Finding,
    effect: Finding,
    matches: bool | None,
    rivals: Competitors,
    incident: Incident,
    table: PlanTable,
) -> tuple[Grade, str | None]:
    """Return the grade, and the one field or action that would raise it."""
    replay = REPLAY if effect.rung >= Rung.NUMERICS else None  # a verdict covers nothing below the plan
    if matches and (cause.code in CONDITIONS or not (rivals.present or rivals.untested)):
        return "supported", replay
    if rivals.untested:
        return "consistent", rivals.untested[0].field
    if rivals.present:
        return "consistent", f"a replay that separates {cause.code} from {rivals.present[0]}"
    if (cause.code, effect.code) == ("shape_class_change", "logit_drift"):
        return "consistent", table.raise_by
    unread = incident.flip is None or incident.flip.from_logits is None
    return "consistent", "step.top_logits" if replay and unread else replay


def _when(finding: Finding) -> str:
    return f"{finding.code} {'before step 0' if finding.onset < 0 else f'at step {finding.onset}'}"


def prove(links: Sequence[Link], verdict: Filed) -> list[Link]:
    """Return the links with what a verdict adds: `proven` raises plan → token, and nothing below the plan.

    The shape is proven only where a factor of the launch's shape is in the set; another factor proves the flip alone.
    """
    if not verdict.proves:
        return list(links)
    covered = {("logit_drift", "token_flip")}
    if any(factor.startswith(SHAPE_FACTORS) for factor in verdict.factors):
        covered.add(("shape_class_change", "logit_drift"))
    forced = ", ".join(verdict.factors)
    why = f"verdict {verdict.source_path}: exchanging {forced} gave the other arm's bits, both ways"
    return [
        Link(one.cause, one.effect, "proven", (*one.why, why)) if (one.cause, one.effect) in covered else one
        for one in links
    ]


def accepted(links: Sequence[Link]) -> list[Link]:
    """Return the links that carry a chain: neither refuted nor merely possible."""
    return [one for one in links if one.grade not in ("refuted", "possible")]


def root_causes(findings: Sequence[Finding], links: Sequence[Link]) -> list[Finding]:
    """Return the earliest findings that lead to the flip and have no accepted cause themselves, lowest rung first.

    One of whose effect the log tells nothing is a root only where there is no other.
    """
    carrying = accepted(links)
    leading = upstream("token_flip", carrying)
    caused = {one.effect for one in carrying}
    roots = [f for f in findings if f.code in leading and f.code not in caused and f.code not in CONDITIONS]
    # An environment always differs in something: it does not come before what is known to have such an effect.
    told = {one.cause for one in carrying if CANNOT_TELL not in one.why}
    roots = [f for f in roots if f.code in told] or roots
    first = min((f.onset for f in roots), default=0)
    return sorted((f for f in roots if f.onset == first), key=lambda f: f.rung)


def path(root: str, links: Sequence[Link]) -> list[Link]:
    """Return the links from a root to the flip; of several ways the one whose weakest link is strongest.

    Of equally strong ways the longest: it names what lies between.
    """
    ways: list[list[Link]] = []

    def walk(code: str, so_far: list[Link]) -> None:
        if code == "token_flip":
            ways.append(so_far)
        for one in accepted(links):
            if one.cause == code and one not in so_far:
                walk(one.effect, [*so_far, one])

    walk(root, [])
    return max(ways, key=lambda way: (_rank(weakest(way)), len(way)), default=[])


def weakest(links: Sequence[Link]) -> Link | None:
    """Return the link with the lowest grade, the first of equals; None for no links."""
    return min(links, key=lambda one: GRADES.index(one.grade), default=None)


def _rank(one: Link | None) -> int:
    return -1 if one is None else GRADES.index(one.grade)


def grade(links: Sequence[Link]) -> Grade | None:
    """Return the grade of a chain: that of its weakest link."""
    found = weakest(links)
    return None if found is None else found.grade
