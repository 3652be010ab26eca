"""History against step, in made-up worlds and with a real cache."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from replay_worlds import make_case

from replay.case import Arm
from replay.engines.transformers import Engine
from replay.engines.transformers_history import Enough, PagedSwitch
from replay.factors import Unpinnable
from replay.history import history_or_step
from replay.trial import Trace, Treatment
from replay.workbench import Bench

FLIP = 5
ON, OFF = {"gemm.k_split": "3"}, {"gemm.k_split": "1"}


def bench_of(token):
    """Return a bench with a flip at token FLIP. token: passes that ran as in the incident → whether its token comes."""

    def run(_case, treatment):
        history = treatment.history or treatment.plan
        passes = [(history if number < treatment.switch else treatment.plan) == ON for number in range(FLIP + 1)]
        turned = token(passes)
        tokens = (*[7] * FLIP, 9 if turned else 8)
        bits = tuple(str(passes[: number + 1]) for number in range(FLIP + 1))
        return Trace(treatment.plan, tokens, bits, observed=dict(treatment.plan))

    arms = {"incident": Arm("i", "i", ON), "reference": Arm("r", "r", OFF)}
    bench = Bench(make_case(flip_index=None, **arms), run)
    assert bench.settle(bench.trial("i", ON), bench.trial("r", OFF))
    return bench


@pytest.mark.parametrize("culprit", range(FLIP))
def test_the_pass_that_carries_it_is_found(culprit):
    found = history_or_step(bench_of(lambda passes: passes[culprit]))
    assert (found.carried_by, found.first_pass) == ("history", culprit)


def test_the_pass_of_the_flip_itself_is_the_step():
    assert history_or_step(bench_of(lambda passes: passes[FLIP])).carried_by == "step"


@pytest.mark.parametrize("rule", [all, any])
def test_both_are_named_where_neither_decides(rule):
    assert history_or_step(bench_of(lambda passes: rule((passes[0], passes[FLIP])))).carried_by == "both"


def test_keys_and_values_that_do_not_give_their_own_bits_back_prove_nothing():
    bench = bench_of(lambda passes: passes[0])
    honest = bench._run

    def broken(case, treatment):
        trace = honest(case, treatment)
        return trace if treatment.history is None else Trace(trace.plan, trace.tokens, ("?",), observed=trace.observed)

    bench._run = broken
    found = history_or_step(bench)
    assert found.carried_by == "open"
    assert "did not give its bits" in found.detail


ALONE = {"batch.rows": "1", "batch.row": "0", "batch.left_pad": "0", "batch.mask_path": "implicit"}
PADDED = {"batch.rows": "4", "batch.row": "2", "batch.left_pad": "7", "batch.mask_path": "explicit"}


@pytest.fixture(scope="module")
def engine(model_path):
    arms = {"incident": Arm("i", "i", PADDED), "reference": Arm("r", "r", ALONE)}
    facts = {"engine": "transformers", "dtype": "bfloat16"}
    case = make_case(token_ids=tuple(range(5, 30)), flip_index=FLIP, engine=facts, **arms)
    made = Engine(case, str(model_path))
    yield made
    made.stop()


@pytest.mark.parametrize("plan", [ALONE, PADDED, ALONE | ON], ids=["alone", "padded", "split"])
@pytest.mark.parametrize("switch", [1, 3, FLIP])
def test_a_cache_put_back_changes_nothing(engine, plan, switch):
    assert engine.run(Treatment(plan, plan, switch)).logits_sha256 == engine.run(plan).logits_sha256


def test_a_cache_of_another_plan_is_seen_from_its_pass_on(engine):
    plain = engine.run(ALONE).logits_sha256
    mixed = engine.run(Treatment(ALONE, ALONE | {"gemm.k_split": "3"}, 3)).logits_sha256
    split = engine.run(ALONE | {"gemm.k_split": "3"}).logits_sha256
    assert mixed[:3] == plain[:3]
    assert mixed[3] not in (plain[3], split[3])


def test_a_cache_goes_between_a_padded_batch_and_the_request_alone(engine):
    trace = engine.run(Treatment(PADDED, ALONE, 2))
    assert trace.refused is None
    assert len(trace.tokens) == FLIP + 1


@pytest.mark.parametrize("plan", [ALONE, PADDED], ids=["alone", "padded"])
def test_keys_and_values_of_a_longer_history_serve_an_earlier_switch(engine, plan):
    fresh = engine._run(plan, 2, None)
    engine.run(Treatment(plan, plan, FLIP))
    kept = engine._history(plan, 2)
    assert engine._taken[1] == FLIP, "not run again"
    assert all(
        one.equal(other) for mine, own in zip(kept, fresh, strict=True) for one, other in zip(mine, own, strict=True)
    )


def test_without_a_cache_there_is_no_history_to_move(engine):
    assert "no keys and values" in engine.run(Treatment(ALONE | {"decode.mode": "recompute"}, ALONE, 2)).refused


NOTHING_ELSE = """
import importlib.metadata, re, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

def closure(*names):
    found, todo = set(), list(names)
    while todo:
        name = todo.pop()
        try:
            requires = importlib.metadata.distribution(name).requires or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            todo += [re.split(r"[^A-Za-z0-9_.-]", one)[0] for one in requires if "extra ==" not in one]
    return {one.lower().replace("_", "-") for one in found}

needed = closure("torch", "transformers")
installed = importlib.metadata.packages_distributions().items()
blocked = {top for top, of in installed if not any(one.lower().replace("_", "-") in needed for one in of)} - {"replay"}

class Only(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked | {"forensics"} else super().find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Only]
"""


def test_a_case_runs_with_nothing_but_torch_and_transformers(model_path, tmp_path):
    """Also in the children: the blocker rides on PYTHONPATH."""
    (tmp_path / "sitecustomize.py").write_text(NOTHING_ELSE)
    arms = {"incident": Arm("i", "i", ALONE | ON, output_token_ids=(1,)), "reference": Arm("r", "r", ALONE)}
    case = make_case(token_ids=tuple(range(5, 30)), flip_index=0, engine={"engine": "transformers"}, **arms)
    (tmp_path / "case.json").write_text(case.to_json())
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)]), "OMP_NUM_THREADS": "1"}
    probe = [sys.executable, "-c", "import duckdb"]
    blocked = subprocess.run(probe, env=environment, capture_output=True, text=True, check=False).stderr
    assert "No module named 'duckdb'" in blocked
    command = [sys.executable, "-m", "replay", "case.json", "-o", "verdict.json", "--model", str(model_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 4), done.stderr
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["outcome"] == "not_reproduced", "the made-up record cannot come out; what matters is that it ran"
    assert all(trial["tokens"] for trial in verdict["trials"])


def pages(places):
    """Return what a model's forward gets of a cache in pages: two layers, the request's three tokens at `places`."""
    torch.manual_seed(len(places) + places[0])
    views = {layer: (torch.rand(9, 2, 4), torch.rand(9, 2, 4)) for layer in (0, 1)}
    allocator = SimpleNamespace(_kv_token_views=views, get_read_indices=lambda _name, _start, length: places[:length])
    return {"cache": SimpleNamespace(layer_to_allocator=dict.fromkeys((1, 0), allocator))}, views


def test_keys_and_values_of_pages_are_taken_and_put_token_by_token():
    (source, taken_from), (target, put_into) = pages([7, 2, 5]), pages([0, 1, 8])
    batch = SimpleNamespace(token_index=3, computed=3)
    take = PagedSwitch(4, batch)
    take(None, (), source)
    assert not take.taken, "another token's turn"
    take.number = 3
    with pytest.raises(Enough):
        take(None, (), source)
    PagedSwitch(3, batch, take.taken)(None, (), target)
    for layer in (0, 1):
        for old, new in zip(taken_from[layer], put_into[layer], strict=True):
            assert torch.equal(old[[7, 2, 5]], new[[0, 1, 8]])
    with pytest.raises(Unpinnable, match="differ in number"):
        PagedSwitch(3, SimpleNamespace(token_index=3, computed=2), take.taken)(None, (), target)
