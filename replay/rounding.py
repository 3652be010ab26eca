"""Rounding or bug: both arms once more in fp32, and the distance of the two tokens in units in the last place.

A flip is called rounding only when fp32 makes the arms agree and the two tokens were close in both arms.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from replay.exchange import pin_not_taken
from replay.trial import Treatment
from replay.verdict import Rounding

if TYPE_CHECKING:
    from replay.trial import Trace
    from replay.workbench import Bench

SIGNIFICAND_BITS = {"bfloat16": 8, "float16": 11, "float32": 24}
NEAR_ULPS = 4.0
"""Flips from another order of additions are seen at 0 to 3 ulp; beyond 4 look for something else."""


def rounding_or_bug(bench: Bench) -> Rounding:
    """Return what the fp32 arms and the margin say together. Runs two trials."""
    pair = [ulps_between(bench, trace) for trace in bench.arms]
    ulps = None if None in pair else max(value for value in pair if value is not None)
    agrees, how = _fp32_agrees(bench)
    if agrees is False:
        return Rounding("not_rounding", agrees, ulps, "the arms give different tokens in fp32 too: more than rounding")
    if ulps is None:
        return Rounding("open", agrees, ulps, f"{how}; how far apart the two tokens were is not known in both arms")
    if ulps > NEAR_ULPS:
        clear = f"the two tokens were {ulps:g} ulp apart, a clear margin: not called rounding"
        return Rounding("open" if agrees is None else "not_rounding", agrees, ulps, f"{how}; {clear}")
    if agrees is None:
        return Rounding("open", agrees, ulps, how)
    return Rounding("rounding", agrees, ulps, f"{how}; the two tokens were at most {ulps:g} ulp apart")


def _fp32_agrees(bench: Bench) -> tuple[bool | None, str]:
    if "dtype.weights" in bench.factors():
        return None, "the weights' dtype differs between the arms, so an fp32 run of both is not the same question"
    pair = [
        (f"fp32: {name}", Treatment(plan | {"dtype.weights": "float32"}))
        for name, plan in zip(("incident", "reference"), bench.plans(), strict=True)
    ]
    bench.ahead(pair)
    traces = [bench.trial(name, treatment) for name, treatment in pair]
    for trace in traces:
        if problem := trace.missing or pin_not_taken(trace):
            return None, f"the arms could not be run in fp32: {problem}"
    if not all(len(trace.tokens) >= bench.count for trace in traces):
        return None, "an fp32 arm ended before the flip"
    same = traces[0].same_tokens(traces[1], bench.count)
    return same, "in fp32 both arms give the same tokens" if same else "in fp32 the arms differ too"


def ulps_between(bench: Bench, trace: Trace) -> float | None:
    """Return how far the two tokens of the flip were apart in one arm, in ulps of the larger logit."""
    index = bench.count - 1
    incident, reference = bench.arms
    if index >= len(trace.top_logits) or index >= len(trace.top_token_ids):
        return None
    logits = dict(zip(trace.top_token_ids[index], trace.top_logits[index], strict=True))
    values = logits.get(incident.tokens[index]), logits.get(reference.tokens[index])
    bits = SIGNIFICAND_BITS.get(str(trace.details.get("logit_dtype")))
    if values[0] is None or values[1] is None or bits is None:
        return None
    largest = max(abs(values[0]), abs(values[1]))
    if values[0] == values[1]:
        return 0.0
    return abs(values[0] - values[1]) / 2.0 ** (math.floor(math.log2(largest)) - bits + 1)
