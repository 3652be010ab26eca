"""Localising: the operator that was planted is found, whatever it is; and what must be open stays open."""

import dataclasses
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from replay_worlds import World, by, make_case

from replay.case import Arm, Case
from replay.engines.transformers import Engine
from replay.factors import gemm_k_split
from replay.localise import Localised, localise
from replay.trial import Treatment
from replay.verdict import History
from replay.workbench import Bench

TOKENS, TRIES = 24, 40
PLAIN = {"gemm.k_split": "1"}
SPLIT = {"gemm.k_split": "6"}
ROLES = ("q", "k", "v", "o", "gate", "up", "down", "lm_head")


@contextmanager
def only(role, value, setup):
    """Split K in the layers of one role, in place of all: a cause whose operator is known on every machine."""
    if value != "1":
        setup.set_kernel(role, partial(gemm_k_split.split_linear, int(value)), "gemm.k_split")
    yield


@pytest.fixture(scope="module")
def engine(model_path):
    torch.set_num_threads(1)
    engine = Engine(None, str(model_path))
    yield engine
    engine.stop()


@pytest.fixture
def planted(engine, monkeypatch):
    """Return a function: role → a bench whose arms flipped through a split in that role, and nothing else."""
    monkeypatch.setattr(gemm_k_split, "observe", lambda _evidence: None)  # it would count the products of all roles

    def run(case, treatment):
        if case is not engine._case:
            engine.case = case
        return dataclasses.replace(engine.run(treatment), observed=dict(treatment.plan))

    def of(role):
        from random import Random

        monkeypatch.setattr(gemm_k_split, "pin", lambda value, setup: only(role, value, setup))
        draw = Random(3)
        for _ in range(TRIES):
            ids = (0, *(draw.randrange(2, 1024) for _ in range(24)))
            arms = Arm("i", "i", SPLIT), Arm("r", "r", PLAIN)
            case = Case("", ids, {"temperature": 0, "max_tokens": TOKENS}, "argmax", {"engine": "transformers"}, *arms)
            bench = Bench(case, run)
            arms = [bench.trial(name, plan) for name, plan in (("incident", SPLIT), ("reference", PLAIN))]
            if bench.settle(*arms):
                return bench
        pytest.fail(f"{TRIES} prompts and no flip from a split of {role}")

    return of


STEP = History("both", None, "")


@pytest.mark.parametrize("role", ROLES)
def test_the_planted_operator_is_the_only_one_that_differs_by_itself(planted, role):
    found = localise(planted(role), STEP)
    assert found.at is not None, found.detail
    assert {one.operator for one in found.origins} == {role}
    assert found.first.rpartition(".")[2] == role
    assert found.null_holds is not False
    whole = found.origins[0]
    if role == "lm_head":
        assert whole.share is None  # the hidden state is the same: the contrast cannot tell
        assert (found.relays, whole.token) == ((), "reference")
    else:
        assert whole.share == 1.0
        assert found.relays
        assert all(one.operator != role for one in found.relays)


def test_in_an_earlier_pass_the_planted_operator_is_found_as_well(planted):
    bench = planted("down")
    found = localise(bench, History("history", 0, ""))
    assert found.at == 0, found.detail
    assert {one.operator for one in found.origins} == {"down"}
    crossed = next(one for one in bench.done if "the incident's, watched" in one.name)
    assert crossed.treatment == Treatment(PLAIN, SPLIT, 1, watched=0)


def test_watching_and_equal_outputs_change_no_bit_and_all_outputs_give_the_donor(planted):
    bench = planted("up")
    localise(bench, STEP)
    traces = {one.name.partition(": ")[2]: one.trace for one in bench.done}
    at, count = bench.count - 1, bench.count
    watched, donor = (traces[f"pass {at}: the {arm}'s, watched"] for arm in ("incident", "reference"))
    assert watched.same_bits(bench.arms[0], count)
    assert watched.logits_sha256[at] != donor.logits_sha256[at]
    assert traces[f"pass {at}: every operator on the reference's input"].logits_sha256[at] == donor.logits_sha256[at]


OPERATORS = ("embed_tokens", "layers.0.q", "layers.0.o", "layers.1.q", "lm_head")


class Watched(World):
    """A world in which layers.0.q and layers.1.q differ by themselves; a q that is patched restores this share."""

    def __init__(self, shares):
        super().__init__(by("gemm.k_split", "cpu.threads"))
        self.shares = shares

    def __call__(self, case, treatment):
        trace = super().__call__(case, treatment)
        if treatment.watched is None:
            return trace
        mine, patched = treatment.donor is not None or treatment.history is None, set(treatment.patched)
        whole = len(patched) == len(OPERATORS)
        differs = {name: mine and "q" in name if whole else mine and name != "embed_tokens" for name in OPERATORS}
        return dataclasses.replace(
            trace,
            logits_sha256=("prefix", "r" if whole or not mine else "i"),
            tokens=(7, 9 if mine else 8),
            contrast=(1 - sum(self.shares.get(name, 0) for name in patched)) if mine else 0.0,
            activations=tuple((name, "other" if differs[name] else "same") for name in OPERATORS),
        )


def settled(world, **changes):
    bench = Bench(make_case(**changes), world)
    bench.settle(*(bench.trial(name, plan) for name, plan in zip("ir", bench.plans(), strict=True)))
    return bench


def test_origins_are_told_from_relays_and_the_single_layers_of_a_role_are_tried():
    found = localise(settled(Watched({"layers.0.q": 0.1, "layers.1.q": 0.9, "layers.0.o": 0.5})), STEP)
    shares = {(one.operator, one.layers): round(one.share, 6) for one in found.origins}
    assert shares == {("q", (0, 1)): 1.0, ("q", (0,)): 0.1, ("q", (1,)): 0.9}
    assert [(one.operator, one.share) for one in found.relays] == [("o", 0.5), ("lm_head", 0.0)]
    assert (found.first, found.equal, found.operators, found.null_holds) == ("layers.0.q", 1, 5, True)


@pytest.mark.parametrize(
    ("changes", "history", "says"),
    [
        ({"engine": {"engine": "vllm"}}, STEP, "operators of transformers only"),
        ({}, History("open", None, "no cache"), "no cache"),
        ({}, History("history", None, "an earlier token turned"), "an earlier token turned"),
    ],
)
def test_without_a_pass_to_look_at_it_is_open_and_nothing_runs(changes, history, says):
    bench = settled(Watched({}), **changes)
    before = bench.executed
    found = localise(bench, history)
    assert says in found.detail
    assert found == Localised(None, 0, 0, None, (), (), None, found.detail)
    assert bench.executed == before


def test_a_spent_budget_is_said_and_what_was_found_stays():
    bench = settled(Watched({"layers.0.q": 1}))
    bench.limit = bench.executed + 3
    found = localise(bench, STEP)
    assert (found.first, found.origins) == ("layers.0.q", ())
    assert "budget" in found.detail
