"""What may be said when a set of factors moves tokens and not bits, and the null beside which it is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay.verdict import Found, Null

if TYPE_CHECKING:
    from replay.case import Plan
    from replay.exchange import Swap
    from replay.workbench import Bench


def null_pins(bench: Bench) -> Null:
    """Run pins that have nothing to do with the arms' difference, and count the tokens that they turn all the same."""
    incident, reference = bench.case.incident.plan, bench.case.reference.plan
    pins = _irrelevant(bench, incident)
    ran = [
        (
            bench.trial(f"null: incident with {_text(pin)}", incident | pin),
            bench.trial(f"null: reference with {_text(pin)}", reference | pin),
        )
        for pin in pins
    ]
    pairs = [pair for pair in ran if not any(trace.missing for trace in pair)]
    return Null(
        tried=len(pairs),
        restored=sum(one.same_tokens(bench.arms[1], bench.count) for one, _ in pairs),
        induced=sum(other.same_tokens(bench.arms[0], bench.count) for _, other in pairs),
        pins=tuple(_text(pin) for pin in pins),
    )


def _irrelevant(bench: Bench, plan: Plan) -> list[Plan]:
    """Return pins on factors that both arms share."""
    shared = plan.keys() - bench.case.differing_factors().keys()
    pins: list[Plan] = []
    if "cpu.threads" in shared:
        pins.append({"cpu.threads": str(int(plan["cpu.threads"]) + 1)})
    if "attention.backend" in shared:
        pins.append({"attention.backend": "math" if plan["attention.backend"] != "math" else "flash"})
    if {"batch.left_pad", "batch.mask_path"} <= shared:
        pins.append({"batch.left_pad": str(int(plan["batch.left_pad"]) + 1), "batch.mask_path": "explicit"})
    if "gemm.k_split" not in plan and "gemm.k_split" not in bench.case.differing_factors():
        pins.append({"gemm.k_split": "2"})
    return pins


def weigh_tokens(swap: Swap, null: Null) -> Found | None:
    """Return the outcome of a set whose exchange moves tokens and not bits; None if it moves no token either."""
    text = ", ".join(swap.names)
    by_chance = (
        f"{null.tried} irrelevant pins were tried: {null.restored} took the incident's token away, "
        f"{null.induced} brought it into the reference"
    )
    if not swap.induces_token and not swap.restores_token:
        return None
    if swap.induces_token and swap.restores_token:
        outcome, effect = "sufficient", "exchanges the tokens, but not the bits: something else takes part"
    elif swap.induces_token:
        outcome, effect = "sufficient", "brings the incident's token into the reference, but not its bits"
    else:
        outcome, effect = "necessary", "takes the incident's token away, but does not give the reference's bits"
    return Found(outcome, f"exchanging {text} {effect}; {by_chance}", swap.names, null=null)


def _text(pin: Plan) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(pin.items()))
