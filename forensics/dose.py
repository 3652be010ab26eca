"""Does the size and place of a cause match its effect? A question of each link, asked of the data.

Answers True (it matches), False (a record contradicts it) or None (the log cannot tell), with the reason in words.
docs/causality.md explains the questions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.flip import same_bits
from forensics.limits import tightened
from forensics.soundness import beyond_rounding
from forensics.stretched import STRETCHES, stretched

if TYPE_CHECKING:
    from forensics.counterfactual import Counterfactual
    from forensics.findings import Finding
    from forensics.flip import Flip
    from forensics.incident import Incident
    from forensics.plan_table import PlanTable

Dose = tuple[bool | None, str]
BEFORE_LOGITS = ("lora",)
"""Members of the decode configuration that act before the raw logits."""
SHAPES_REQUESTS = ("max_model_len", "engine_version", "versions.transformers", "template", "tokenizer", "truncat")
"""Parts of names of settings that act on a prompt before the model sees it."""
SCHEDULES = (
    "engine_version", "scheduler", "max_num", "max_model_len", "chunk", "batch", "block", "gpu_memory", "kv_cache",
    "prefix_cach", "graph", "compilation", "tp_size", "pp_size", "dp_size",
)  # fmt: skip
"""Parts of names of settings that decide which requests share a launch, and in which shape."""
JUST_BEFORE = ("preemption_recompute",)
"""Effects that take place between two steps of the request: a cause may show in the step before."""
COMPOSED = ("batch_recomposition", "queue_pressure", "shape_class_change")
"""Effects that the admission rule run again speaks of."""
ROUNDS = ("shape_class_change", "algorithm_change", "graph_mode_change", "kernel_fallback")
"""Causes that add the same numbers in another order."""
CANNOT_TELL = "dose: cannot be told from the log"


def dose(cause: Finding, effect: Finding, incident: Incident, table: PlanTable) -> Dose:
    """Return whether the cause matches the effect in size and place; what a counterfactual says of it goes first."""
    told = _dose(cause, effect, incident, table)
    if effect.code in COMPOSED:
        for one in incident.counterfactuals:
            if one.cause == cause.code and told[0] is not False:
                return _thought_away(one, effect, told)
    return told


def _thought_away(one: Counterfactual, effect: Finding, told: Dose) -> Dose:
    """An environment differs in more than limits: that they change nothing does not clear it, as it does a burst."""
    said = f"dose: {one.told()}"
    waits = effect.code == "queue_pressure"
    if one.invalid is not None or (waits and not one.waited):
        return told[0], f"{told[1]}; {one.told()}"
    if one.waits == one.waited if waits else one.same_recorded:
        return (False, said) if one.cause == "arrival_burst" else (told[0], f"{told[1]}; {one.told()}")
    if waits:
        said += f"; the request waits {one.waits} engine steps instead of {one.waited}"
    matches = one.waits == 0 if waits else one.same_reference
    return (True, said) if matches else (told[0], f"{told[1]}; {said.removeprefix('dose: ')}")


def _dose(cause: Finding, effect: Finding, incident: Incident, table: PlanTable) -> Dose:
    flip = incident.flip
    pair = (cause.code, effect.code)
    if pair == ("logit_drift", "token_flip"):
        return _from_logits(flip)
    if pair == ("thin_margin", "token_flip"):
        return True, f"dose: {flip.tie if flip else 'near tie'}; a change of rounding can exchange the two tokens"
    if effect.code == "token_flip":
        return _after_the_logits(cause, incident)
    if effect.code in ("effective_request_drift", "decode_config_drift") and cause.code != "environment_change":
        return tightened(cause, effect, incident)
    if pair == ("corruption", "logit_drift"):
        return True, "dose: the logits are further apart than any order of additions puts them"
    if pair == ("execution_race", "logit_drift"):
        return True, "dose: one plan gave other bits"
    if pair == ("effective_request_drift", "logit_drift"):
        return True, "dose: other tokens went in, so other logits come out"
    if pair == ("environment_change", "effective_request_drift"):
        return _shapes_requests(cause)
    if cause.code == "environment_change" and effect.code in ("batch_recomposition", "shape_class_change"):
        return _schedules(cause)
    if effect.code == "logit_drift" and cause.code in ROUNDS and (far := beyond_rounding(incident)):
        return False, f"dose: {far}; no other order of additions does that"
    if pair == ("shape_class_change", "logit_drift"):
        if flip is not None and flip.tie == "clear":
            return None, "dose: the candidates were clearly apart; another rounding order does not explain that alone"
        return table.dose()
    if pair == ("decode_config_drift", "logit_drift") and not set(cause.target or ()) & set(BEFORE_LOGITS):
        return False, "dose: no setting that differs acts before the raw logits"
    if pair == ("shape_class_change", "graph_mode_change") and _but_graph(cause.target) == _but_graph(cause.reference):
        return False, "dose: the launch has the same tokens, rows and padding; the graph alone differs"
    if cause.code in STRETCHES:
        return stretched(cause, effect, incident)
    if effect.code == "batch_recomposition" and _takes_away(cause) and _gained(cause, effect):
        return False, f"dose: the arm with {cause.code} had more company, and that takes requests out of a batch"
    if effect.code == "logit_drift" and cause.steps:
        return _parts_with(cause, effect)
    if effect.steps and cause.steps:
        return _at_the_same_steps(cause, effect)
    return None, CANNOT_TELL


def _from_logits(flip: Flip | None) -> Dose:
    if flip is None or flip.from_logits is None:
        return None, "dose: the top logits at the flip are not on record in both arms"
    if not flip.from_logits:
        return False, "dose: the logits at the flip do not account for both tokens; something after them chose"
    moved = "" if flip.drift is None else f"; the two candidates moved {flip.drift:.4g} against each other"
    return True, f"dose: each token is the highest raw logit of its arm, and the logits differ{moved}"


def _after_the_logits(cause: Finding, incident: Incident) -> Dose:
    """What acts between the raw logits and the token (settings, the rule) had a say only where they do not decide."""
    flip, pairs = incident.flip, incident.token_pairs()
    if flip is None or flip.from_logits is None or not pairs:
        return None, CANNOT_TELL
    if flip.from_logits and 0 not in (flip.target_gap, flip.reference_gap):
        return False, f"dose: each token is strictly the highest raw logit of its arm; {cause.code} had no say"
    if same_bits(*pairs[-1]):
        return True, "dose: the logits at the flip are equal bit for bit; what chose another token comes after them"
    return None, CANNOT_TELL


def _shapes_requests(environment: Finding) -> Dose:
    named = [name for name in environment.target or () if any(part in name for part in SHAPES_REQUESTS)]
    if named:
        return None, f"dose: {', '.join(named)} can change what the model sees; whether it did cannot be told"
    return False, "dose: nothing of the environment that differs shapes a request"


def _schedules(environment: Finding) -> Dose:
    named = [name for name in environment.target or () if any(part in name for part in SCHEDULES)]
    if named:
        return None, f"dose: {', '.join(named[:3])} can change how launches are composed; whether it did cannot be told"
    return False, "dose: nothing of the environment that differs composes launches"


def _takes_away(cause: Finding) -> bool:
    return cause.code in ("memory_pressure", "paging")


def _gained(cause: Finding, batch: Finding) -> bool:
    """Return whether the arm with the cause shared its first differing launch with more requests than the other arm.

    Less free memory and more paging say which arm that is; batch: the loads of the neighbours, arm by arm.
    """
    values = (cause.target, cause.reference)
    if None in values or not isinstance(batch.target, list) or not isinstance(batch.reference, list):
        return False
    in_target = values[0] > values[1] if cause.code == "paging" else values[0] < values[1]
    more = len(batch.target) - len(batch.reference)
    return more > 0 if in_target else more < 0


def _but_graph(shape: str | None) -> str | None:
    return shape and shape.rpartition(" graph=")[0]


def _parts_with(cause: Finding, effect: Finding) -> Dose:
    if cause.onset == effect.onset > 0:
        return True, f"dose: the logits are equal up to step {cause.onset - 1} and part where {cause.code} begins"
    return None, f"dose: the logits do not part where {cause.code} begins, or there is no step before it to compare"


def _at_the_same_steps(cause: Finding, effect: Finding) -> Dose:
    what = "another shape" if effect.code == "shape_class_change" else effect.code
    reach = 1 if effect.code in JUST_BEFORE else 0
    beside = [step for step in effect.steps if not {step, step - reach} & set(cause.steps)]
    if beside:
        return None, f"dose: at step {beside[0]} there is {what} too, without {cause.code}"
    return True, f"dose: at all {len(effect.steps)} steps with {what} there is {cause.code}"
