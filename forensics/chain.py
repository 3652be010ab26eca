"""Findings to links to a graded chain. The only place that knows which code can cause which.

A link is graded from data: is the order known, does the dose match, is every named competitor ruled out?
  proven      a replay verdict shows it, bit for bit, in both directions
  supported   order known, dose matches, competitors looked for and ruled out (what lies on the way is none)
  consistent  order known, nothing contradicts, but a competitor is present or could not be tested
  possible    the order is not known
  refuted     a record contradicts it
Root cause: the earliest accepted finding without an accepted cause. A chain is as strong as its weakest link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from forensics.dose import dose
from forensics.findings import GRADES, Finding, Gap, Grade, Link, Rung

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forensics.filed import Filed
    from forensics.incident import Incident
    from forensics.plan_table import PlanTable

CAUSES: dict[str, tuple[str, ...]] = {
    "token_flip": ("logit_drift", "thin_margin", "decode_config_drift", "tie_rule_change"),
    "tie_rule_change": ("decode_config_drift", "environment_change"),
    "logit_drift": (
        "shape_class_change", "algorithm_change", "precision_path_change", "graph_mode_change",
        "effective_request_drift", "decode_config_drift", "weights_drift", "environment_change",
    ),
    "algorithm_change": ("shape_class_change", "environment_change"),
    "precision_path_change": ("shape_class_change", "environment_change"),
    "graph_mode_change": ("shape_class_change", "environment_change"),
    "shape_class_change": (
        "batch_recomposition", "preemption_recompute", "prefix_cache_hit", "effective_request_drift",
        "environment_change",
    ),
    "batch_recomposition": (
        "arrival_burst", "queue_pressure", "paging", "memory_pressure", "isolation_posture", "environment_change",
    ),
    "queue_pressure": ("arrival_burst", "memory_pressure", "environment_change"),
    "preemption_recompute": ("paging", "memory_pressure", "environment_change"),
    "prefix_cache_hit": ("paging", "memory_pressure", "environment_change"),
    "paging": ("memory_pressure", "environment_change"),
    "memory_pressure": ("arrival_burst", "environment_change"),
}  # fmt: skip
"""Effect → the causes that can bring it about; an effect stands above the rows of its causes. What stands beside a
cause is its competitor, unless the cause can bring it about: then it lies on the way from the cause to the effect."""

REPLAY = "a replay that forces the plan both ways"
SHAPE_FACTORS = ("batch.", "prefill.", "graph.")
"""Plan factors that are part of a launch's shape."""
CONDITIONS = ("thin_margin",)
"""Codes that make an effect possible but never bring it about: not competitors, and no root cause."""
BESIDE = ("regime_mismatch",)
"""Codes that are worth saying and cause nothing."""
POSSIBLE = [Link(cause, effect, "possible", ()) for effect, causes in CAUSES.items() for cause in causes]


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
            rivals = _competitors(cause, effect, stand, gaps, below)
            grade, raise_by = _grade(cause, effect, matches, rivals, incident, table)
            links.append(Link(cause.code, effect.code, grade, (order, why, *rivals.why()), raise_by))
    return links


class Competitors(NamedTuple):
    """What could have brought about an effect instead of its cause. between, unseen: what lies on the way."""

    present: tuple[str, ...]
    untested: tuple[Gap, ...]
    ruled_out: tuple[str, ...]
    between: tuple[str, ...]
    unseen: tuple[str, ...]

    def why(self) -> list[str]:
        """Return the reasons that they give for a grade, one a line."""
        why = [f"ruled out: {', '.join(self.ruled_out)}"] if self.ruled_out else []
        why += [f"also present: {', '.join(self.present)}"] if self.present else []
        why += [f"could not be tested: {gap.code} ({gap.field} is not on record)" for gap in self.untested]
        why += [f"lies between: {', '.join(self.between)}"] if self.between else []
        return why + ([f"may lie between, not on record: {', '.join(self.unseen)}"] if self.unseen else [])


def _competitors(
    cause: Finding, effect: Finding, stand: Sequence[Finding], gaps: Sequence[Gap], below: Sequence[Link]
) -> Competitors:
    """Sort the other causes of an effect. A finding lies between if accepted links lead from the cause to it.

    What is not on record lies between if the cause can bring it about: its absence hides a step of the way, not another
    way. stand: the findings that could have caused the effect and that nothing contradicts.
    """
    rivals = [code for code in CAUSES[effect.code] if code not in (cause.code, *CONDITIONS)]
    there = [finding.code for finding in stand if finding.code in rivals]
    between = [code for code in there if cause.code in _upstream(code, accepted(below))]
    missing = [gap for gap in gaps if gap.code in rivals and gap.code not in there]
    unseen = [gap.code for gap in missing if cause.code in _upstream(gap.code, POSSIBLE)]
    seen = {*there, *(gap.code for gap in missing)}
    return Competitors(
        present=tuple(code for code in there if code not in between),
        untested=tuple(gap for gap in missing if gap.code not in unseen),
        ruled_out=tuple(code for code in rivals if code not in seen),
        between=tuple(between),
        unseen=tuple(unseen),
    )


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
    """Return the earliest findings that lead to the flip and have no accepted cause themselves."""
    carrying = accepted(links)
    leading = _upstream("token_flip", carrying)
    caused = {one.effect for one in carrying}
    roots = [f for f in findings if f.code in leading and f.code not in caused and f.code not in CONDITIONS]
    first = min((f.onset for f in roots), default=0)
    return sorted((f for f in roots if f.onset == first), key=lambda f: f.rung)


def _upstream(effect: str, links: Sequence[Link]) -> set[str]:
    found: set[str] = set()
    for one in links:
        if one.effect == effect and one.cause not in found:
            found |= {one.cause} | _upstream(one.cause, links)
    return found


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
