"""Findings to links to a graded chain. The only place that knows which code can cause which.

A link is graded from data: is the order known, does the dose match, is every named competitor ruled out?
  proven      a replay verdict shows it, bit for bit, in both directions
  supported   order known, dose matches, competitors looked for and ruled out
  consistent  order known, nothing contradicts, but a competitor is present or could not be tested
  possible    the order is not known
  refuted     a record contradicts it
Root cause: the earliest accepted finding without an accepted cause. A chain is as strong as its weakest link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.findings import GRADES, Finding, Gap, Grade, Link, Rung

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forensics.filed import Filed
    from forensics.flip import Flip
    from forensics.incident import Incident
    from forensics.plan_table import PlanTable

CAUSES: dict[str, tuple[str, ...]] = {
    "token_flip": ("logit_drift", "thin_margin", "decode_config_drift"),
    "logit_drift": ("shape_class_change", "effective_request_drift", "weights_drift", "environment_change"),
    "shape_class_change": (
        "batch_recomposition", "preemption_recompute", "prefix_cache_hit", "effective_request_drift",
        "environment_change",
    ),
}  # fmt: skip
"""Effect → the causes that can bring it about. What stands beside a cause here is its competitor."""

REPLAY = "a replay that forces the plan both ways"
SHAPE_FACTORS = ("batch.", "prefill.", "graph.")
"""Plan factors that are part of a launch's shape."""
CONDITIONS = ("thin_margin",)
"""Codes that make an effect possible but never bring it about: not competitors, and no root cause."""


def link(findings: Sequence[Finding], gaps: Sequence[Gap], incident: Incident, table: PlanTable) -> list[Link]:
    """Return a graded link for every pair of findings that CAUSES allows, strongest grade of an effect first."""
    by_code = {finding.code: finding for finding in findings}
    links = []
    for effect, causes in CAUSES.items():
        if effect not in by_code:
            continue
        for cause in causes:
            if cause in by_code:
                links.append(_grade(by_code[cause], by_code[effect], findings, gaps, incident, table))
    return links


def _grade(
    cause: Finding,
    effect: Finding,
    findings: Sequence[Finding],
    gaps: Sequence[Gap],
    incident: Incident,
    table: PlanTable,
) -> Link:
    if cause.onset > effect.onset:
        early = f"{effect.code} begins at step {effect.onset}, before {cause.code} at step {cause.onset}"
        return Link(cause.code, effect.code, "refuted", (early,))
    order = f"order: {_when(cause)} then {_when(effect)}"
    dose, dose_why = _dose(cause, effect, incident, table)
    if dose is False:
        return Link(cause.code, effect.code, "refuted", (order, dose_why))
    rivals = [code for code in CAUSES[effect.code] if code not in (cause.code, *CONDITIONS)]
    present = [f.code for f in findings if f.code in rivals and f.onset <= effect.onset]
    untested = [gap for gap in gaps if gap.code in rivals]
    ruled_out = [code for code in rivals if code not in present and code not in {gap.code for gap in untested}]
    why = [order, dose_why]
    why += [f"ruled out: {', '.join(ruled_out)}"] if ruled_out else []
    why += [f"also present: {', '.join(present)}"] if present else []
    why += [f"could not be tested: {gap.code} ({gap.field} is not on record)" for gap in untested]
    if dose and (cause.code in CONDITIONS or not (present or untested)):
        raise_by = REPLAY if effect.rung >= Rung.NUMERICS else None  # a verdict covers nothing below the plan
        return Link(cause.code, effect.code, "supported", tuple(why), raise_by)
    if untested:
        raise_by = untested[0].field
    elif present:
        raise_by = f"a replay that separates {cause.code} from {present[0]}"
    elif cause.code == "shape_class_change":
        raise_by = table.raise_by
    else:
        raise_by = "step.top_logits" if incident.flip is None or incident.flip.from_logits is None else REPLAY
    return Link(cause.code, effect.code, "consistent", tuple(why), raise_by)


def _dose(cause: Finding, effect: Finding, incident: Incident, table: PlanTable) -> tuple[bool | None, str]:
    """Return whether the size and place of the cause match the effect: True, False, or None for cannot tell."""
    flip = incident.flip
    pair = (cause.code, effect.code)
    if pair == ("logit_drift", "token_flip"):
        return _from_logits(flip)
    if pair == ("thin_margin", "token_flip"):
        return True, f"dose: {flip.tie if flip else 'near tie'}; a change of rounding can exchange the two tokens"
    if pair == ("shape_class_change", "logit_drift"):
        if flip is not None and flip.tie == "clear":
            return None, "dose: the candidates were clearly apart; another rounding order does not explain that alone"
        return table.dose()
    if effect.code == "shape_class_change" and cause.steps:
        beside = [step for step in effect.steps if step not in cause.steps]
        if beside:
            return None, f"dose: at step {beside[0]} the shape differs too, without {cause.code}"
        return True, f"dose: at all {len(effect.steps)} steps with another shape there is {cause.code}"
    return None, "dose: cannot be told from the log"


def _from_logits(flip: Flip | None) -> tuple[bool | None, str]:
    if flip is None or flip.from_logits is None:
        return None, "dose: the top logits at the flip are not on record in both arms"
    if not flip.from_logits:
        return False, "dose: the logits at the flip do not account for both tokens; something after them chose"
    moved = "" if flip.drift is None else f"; the two candidates moved {flip.drift:.4g} against each other"
    return True, f"dose: each token is the highest raw logit of its arm, and the logits differ{moved}"


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
    """Return the links from a root to the flip; of several ways the one whose weakest link is strongest."""
    ways: list[list[Link]] = []

    def walk(code: str, so_far: list[Link]) -> None:
        if code == "token_flip":
            ways.append(so_far)
        for one in accepted(links):
            if one.cause == code and one not in so_far:
                walk(one.effect, [*so_far, one])

    walk(root, [])
    return max(ways, key=lambda way: (_rank(weakest(way)), -len(way)), default=[])


def weakest(links: Sequence[Link]) -> Link | None:
    """Return the link with the lowest grade, the first of equals; None for no links."""
    return min(links, key=lambda one: GRADES.index(one.grade), default=None)


def _rank(one: Link | None) -> int:
    return -1 if one is None else GRADES.index(one.grade)


def grade(links: Sequence[Link]) -> Grade | None:
    """Return the grade of a chain: that of its weakest link."""
    found = weakest(links)
    return None if found is None else found.grade
