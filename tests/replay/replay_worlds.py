"""Made-up worlds for replay: a case, and rules from a plan to what an execution of it would show."""

import dataclasses

from replay.case import Arm, Case
from replay.trial import Trace

IDS = (3, 1, 4)
INCIDENT = {"gemm.k_split": "4", "cpu.threads": "2"}
REFERENCE = {"gemm.k_split": "1", "cpu.threads": "1"}


def make_case(**changes) -> Case:
    base = Case(
        x_digest="d",
        token_ids=IDS,
        decode_cfg={"temperature": 0, "max_tokens": 2},
        token_rule="argmax",
        engine={"engine": "transformers", "weights_sha256": "w", "device": "cpu A", "num_threads": 1},
        incident=Arm("run-i", "i", INCIDENT, output_token_ids=(7, 9)),
        reference=Arm("run-r", "r", REFERENCE, output_token_ids=(7, 8)),
        flip_index=1,
    )
    return dataclasses.replace(base, **changes)


class World:
    """Answers plans by two rules. `kept`: every plan that was asked for."""

    def __init__(self, bits, token=None, *, observed=None, refuse=None, host=None):
        self.bits, self.token = bits, token or (lambda plan: {"i": 9, "r": 8}.get(bits(plan), 5))
        self.observed, self.refuse = observed or (lambda plan: dict(plan)), refuse or (lambda plan: None)
        self.host, self.kept = host or {}, []

    def __call__(self, _case, treatment):
        self.kept.append(treatment.plan)
        return self._trace(treatment.plan)

    def _trace(self, plan):
        if reason := self.refuse(plan):
            return Trace(plan=plan, refused=reason, host=self.host)
        return Trace(
            plan=plan,
            tokens=(7, self.token(plan)),
            logits_sha256=("prefix", str(self.bits(plan))),
            top_logits=((1.0,), (2.0,)),
            observed=self.observed(plan),
            host=self.host,
        )


def by(*names):
    """Return the rule that the bits are those of the arm whose values all these factors have, else others."""

    def bits(plan):
        values = [plan.get(name) for name in names]
        if values == [INCIDENT.get(name) for name in names]:
            return "i"
        return "r" if values == [REFERENCE.get(name) for name in names] else tuple(sorted(plan.items()))

    return bits


def both_needed(incident_token):
    """Return a world whose bits need both factors and whose token follows the given rule."""
    return World(by("gemm.k_split", "cpu.threads"), lambda plan: 9 if incident_token(plan) else 8)


def flaky():
    answers = iter(range(1000))
    return World(lambda plan: next(answers), lambda plan: 9 if plan == INCIDENT else 8)
