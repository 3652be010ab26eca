"""Run a request again under a plan, in padded or packed launches of transformers; and `install`, the recorder.

`python -m replay.engines.transformers` is the child of replay/children.py: lines of JSON in, a line of JSON out each.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from replay.engines.child import answer
from replay.engines.transformers_activations import Activations
from replay.engines.transformers_arbiter import arbitrate
from replay.engines.transformers_history import CacheSwitch, PagedSwitch, Snapshot, earlier
from replay.engines.transformers_hooks import Call
from replay.engines.transformers_hooks import install as watch
from replay.engines.transformers_launch import KNOWN_CONFIG, PaddedBatch, build, prefilled
from replay.engines.transformers_linear import forced
from replay.engines.transformers_model import Models
from replay.engines.transformers_packed import PackedBatch, is_packed
from replay.engines.transformers_record import install, plan_facts, request_ids
from replay.engines.transformers_trial import Enough, Trial
from replay.factors import Setup, Unpinnable, factor
from replay.trial import Trace, Treatment

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from replay.case import Case, Plan

__all__ = ["Engine", "install", "main", "plan_facts", "request_ids"]

REWRITTEN = ("prefill.", "batch.schedule")
"""Factors under which a pass may compute again what an earlier one had: there no cache is a part of a later one."""


class Engine:
    """A model on this machine, and the recorder's own hooks reporting into memory."""

    def __init__(self, case: Case | None, model_path: str) -> None:
        self._case = case
        self.models = Models(model_path)
        self.trial: Trial | None = None
        self._taken: tuple[Plan, int, Snapshot] | None = None
        self._watched: tuple[str, dict[str, torch.Tensor]] | None = None
        self.stop = watch(self._listen, lambda hook: hook)  # a fault must fail the trial, not be counted

    @property
    def case(self) -> Case:
        """Return the case whose request runs."""
        assert self._case is not None
        return self._case

    @case.setter
    def case(self, case: Case) -> None:
        self._case, self._taken, self._watched = case, None, None

    def _listen(self, _call: Call) -> Trial | None:
        return self.trial

    def run(self, treatment: Treatment | Plan) -> Trace:
        """Return what the treatment gives, or a refused trace."""
        given = treatment if isinstance(treatment, Treatment) else Treatment(treatment)
        if given.since:
            return Trace(plan=given.plan, refused="this version moves keys and values once in a run of transformers")
        if given.watched is not None:
            return self._watch(given)
        try:
            if given.arbitrate:
                return Trace(plan=given.plan, details={"arbiter": arbitrate(self.case, self.models.load)})
            snapshot = None if given.history is None else self._history(given.history, given.switch)
            trace = self._run(given.plan, given.switch if snapshot else None, snapshot, given.must_give)
            assert isinstance(trace, Trace)
        except Unpinnable as reason:
            return Trace(plan=given.plan, refused=str(reason))
        return trace

    def _watch(self, given: Treatment) -> Trace:
        """Return what a treatment gives that watches a pass, which may be one of its history."""
        assert given.watched is not None
        donated: dict[str, torch.Tensor] = {}
        if given.patched:
            if problem := self._donate(given):
                return Trace(plan=given.plan, refused=f"the donor gave nothing: {problem}")
            assert self._watched
            donated = {name: self._watched[1][name] for name in given.patched}
        watch = Activations(given.watched, donated)
        early = given.history is not None and given.watched < given.switch
        snapshot: Snapshot | None = None
        try:
            if given.history is not None:
                taken = self._run(given.history, given.switch, None, watch=watch if early else None)
                assert isinstance(taken, list)
                snapshot = taken
            trace = self._run(given.plan, given.switch if snapshot else None, snapshot, watch=None if early else watch)
            assert isinstance(trace, Trace)
        except Unpinnable as reason:
            return Trace(plan=given.plan, refused=str(reason))
        if not given.patched:
            self._watched = given.key(), watch.kept()
        return replace(trace, activations=watch.hashes())

    def _donate(self, given: Treatment) -> str | None:
        """Hold the own rows of the treatment's donor, the latest one remembered; return why there are none."""
        assert given.watched is not None
        assert given.donor is not None
        at = given.watched
        own = given.history if given.history is not None and at < given.switch else given.plan
        donor = Treatment(given.donor, own if at else None, at, watched=at)
        if self._watched and self._watched[0] == donor.key():
            return None
        return self._watch(donor).missing

    def _history(self, plan: Plan, switch: int) -> Snapshot:
        """Return the keys and values that a run under the plan leaves before a pass; the latest run is kept."""
        if self._taken and self._taken[0] == plan:
            _, later, snapshot = self._taken
            if later == switch or (later > switch > 0 and not any(name.startswith(REWRITTEN) for name in plan)):
                return earlier(snapshot, later - switch)
        taken = self._run(plan, switch, None)
        assert isinstance(taken, list)
        self._taken = plan, switch, taken
        return taken

    def _run(
        self,
        plan: Plan,
        switch: int | None,
        snapshot: Snapshot | None,
        must_give: Sequence[str] = (),
        watch: Activations | None = None,
    ) -> Trace | Snapshot:
        """Run the plan; with a switch and no snapshot only up to it, and return the cache there."""
        model = self.models.load(str(self.case.engine.get("dtype") or "bfloat16"))
        setup = Setup(load=self.models.load, model=model, prompt=len(self.case.token_ids))
        with ExitStack() as stack:
            for name in sorted(plan, key=lambda name: (name != "dtype.weights", name)):
                stack.enter_context(factor(name).pin(plan[name], setup))
            stack.enter_context(forced(setup))
            batch = PackedBatch(self.case, setup) if is_packed(setup) else build(self.case, setup)
            trial = Trial(self.case, batch, setup, must_give)
            stack.callback(trial.end)
            change: CacheSwitch | PagedSwitch | None = None
            if switch is not None:
                change = batch.switch(switch, snapshot)
                stack.callback(setup.model.register_forward_pre_hook(change, with_kwargs=True).remove)
            if watch is not None:
                stack.enter_context(watch.of(batch, setup))
            try:
                if isinstance(batch, PackedBatch):
                    batch.run(trial)
                else:
                    self._generate(batch, setup, trial)
            except Enough:
                if trial.stopped is None:
                    assert change is not None
                    return change.taken
            if change is not None and snapshot is None:
                raise Unpinnable(f"history: the run ended before pass {switch}")
            trial.close()
            seen = {name: factor(name).observe(trial.evidence) for name in plan}
        return Trace(
            plan=plan,
            tokens=tuple(trial.tokens),
            logits_sha256=tuple(trial.hashes),
            top_token_ids=tuple(tuple(ids) for ids, _ in trial.tops),
            top_logits=tuple(tuple(values) for _, values in trial.tops),
            observed={name: value for name, value in seen.items() if value is not None},
            details=trial.details(),
            stopped=trial.stopped,
            contrast=trial.contrast,
        )

    def _generate(self, batch: PaddedBatch, setup: Setup, trial: Trial) -> None:
        config, model = self._generation_config(setup), setup.model
        ids, padding = batch.input_ids.to(model.device), batch.padding.to(model.device)
        self.trial = trial
        try:
            model.generate(
                ids,
                attention_mask=padding,
                generation_config=config,
                logits_processor=setup.processors,
                past_key_values=prefilled(model, ids, padding, setup),
            )
        finally:
            self.trial = None

    def _generation_config(self, setup: Setup) -> Any:
        from transformers import GenerationConfig

        wanted = {name: value for name, value in self.case.decode_cfg.items() if name not in KNOWN_CONFIG}
        unknown = [name for name in wanted if not hasattr(GenerationConfig(), name)]
        if unknown:
            raise Unpinnable(f"the decode configuration holds {', '.join(unknown)}, which cannot be applied here")
        pad = setup.model.config.get_text_config().pad_token_id
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=self.case.horizon(),
            eos_token_id=self.case.decode_cfg.get("stop_token_ids"),
            pad_token_id=0 if pad is None else pad,
            use_cache=setup.use_cache,
            **wanted,
        )


def main() -> int:
    """Answer as the child of a proof."""
    return answer(lambda model_path: Engine(None, model_path))


if __name__ == "__main__":
    sys.exit(main())
