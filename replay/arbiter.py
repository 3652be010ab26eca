"""Who is right: the two candidates in float64 under the same ids, and the rounding error that they are held against.

The error of the served precision cannot be taken from the two arms: one of them chose the other token, so its error is
at least half of the difference, and the rule would always say "undecidable". It is taken from an fp32 run against
float64, the largest error e over the vocabulary, scaled by the ratio of the unit roundoffs: e · 2^(24 - p) for a
significand of p bits, since first-order error bounds are linear in the unit roundoff (Higham, Accuracy and Stability of
Numerical Algorithms, 2002, chapter 3). Both tokens can be off by it, so the floor is twice that. Standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from replay.rounding import SIGNIFICAND_BITS
from replay.trial import Treatment

if TYPE_CHECKING:
    from replay.workbench import Bench


@dataclass(frozen=True)
class Layer:
    """Difference of the two tokens after one layer, through the final norm and the output head, in logits."""

    float64: float
    float32: float


@dataclass(frozen=True)
class Arbiter:
    """`answer`: incident_wrong, reference_wrong, undecidable (at the served precision) or open.

    margin: logit of the incident's token less that of the reference's, in float64; floor: what rounding in `dtype` can
    make of it; float32_floor: what rounding in fp32 can; prefers: whose token float64 would choose, or neither;
    layers: logit lens, () where the model's layers or its final norm are not known.
    """

    answer: str
    margin: float | None
    floor: float | None
    float32_floor: float | None
    dtype: str | None
    prefers: str | None
    layers: tuple[Layer, ...]
    detail: str


def arbiter(bench: Bench) -> Arbiter:
    """Return which arm float64 says is wrong, if the difference is beyond rounding. Runs one trial."""
    if bench.case.engine.get("engine") != "transformers":
        return _open("this version computes it with transformers only")
    dtype = _coarsest(bench)
    if dtype is None:
        return _open("the precision that was served is not known")
    trace = bench.trial("arbiter: float64 and fp32", Treatment({}, arbitrate=True))
    if trace.missing:
        return _open(trace.missing)
    found = trace.details["arbiter"]
    margin = found["float64"][0] - found["float64"][1]
    fine = 2 * found["largest_error"]
    floor = fine * 2.0 ** (SIGNIFICAND_BITS["float32"] - SIGNIFICAND_BITS[dtype])
    answer = "undecidable" if abs(margin) <= floor else "incident_wrong" if margin < 0 else "reference_wrong"
    token, logit = found["top"]
    prefers = dict(zip(found["tokens"], ("incident", "reference"), strict=True)).get(token, "neither")
    third = f"float64 would choose token {token}, {logit - max(found['float64']):.3g} logits above both"
    detail = third if prefers == "neither" else ""
    layers = tuple(Layer(*both) for both in found["layers"])
    return Arbiter(answer, margin, floor, fine, dtype, prefers, layers, detail)


def _open(why: str) -> Arbiter:
    return Arbiter("open", None, None, None, None, None, (), why)


def _coarsest(bench: Bench) -> str | None:
    """Return the dtype with the fewest significand bits that one of the arms computed in."""
    loaded = str(bench.case.engine.get("dtype") or "bfloat16")
    known = [plan.get("dtype.weights", loaded) for plan in bench.plans()]
    return min(known, key=SIGNIFICAND_BITS.__getitem__) if set(known) <= SIGNIFICAND_BITS.keys() else None
