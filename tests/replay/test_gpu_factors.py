"""The factors of a CUDA device, on one: pinned, read back, refused with the library's word, and proven where planted.

Run by `make test-gpu`. Nothing is skipped there but what needs a package that is not installed.
"""

import sys
from pathlib import Path

import pytest
import torch

from replay.catalogue import environment, factors
from replay.doctor import RANDOM_MODEL, doctor_case, wanted
from replay.factors.gemm_k_split import split_linear
from replay.prove import prove
from replay.reduction_tree import Shape, chained, tree_of
from replay.tactic import from_numbers
from replay.trial import Treatment

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]
TOOLS = Path(__file__).parents[2] / "tools"
LT = {"gemm.backend": "cublaslt"}


@pytest.fixture(scope="module")
def engine():
    from replay.engines.transformers import Engine

    assert torch.cuda.is_available(), "these tests need a CUDA device"
    one = Engine(doctor_case(), RANDOM_MODEL)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def probes():
    """Return tools/gpu_probes.py."""
    sys.path.insert(0, str(TOOLS))
    try:
        import gpu_probes

        return gpu_probes
    finally:
        sys.path.remove(str(TOOLS))


def run(engine, plan):
    engine.case = doctor_case()
    return engine.run(Treatment(plan))


@pytest.mark.parametrize(
    "plan",
    [
        {"gemm.backend": "cublas"},
        LT,
        LT | {"gemm.reduced_precision_reduction": "true"},
        LT | {"gemm.reduced_precision_reduction": "false"},
        LT | {"gemm.reduced_precision_reduction": "no_split_k"},
        {"gemm.fp16_accumulation": "false"},
        {"gemm.triton": "tile=64x64x32,splitk=1"},
        {"gemm.triton": "tile=32x64x64,splitk=2"},
        {"batch_invariant": "true"},
        {"gemm.k_split": "3"},
        {"attention.backend": "math"},
        {"attention.backend": "efficient"},
        {"attention.backend": "flash"},
        {"gemm.fp32_precision": "ieee", "dtype.weights": "float32"},
        {"gemm.fp32_precision": "tf32", "dtype.weights": "float32"},
    ],
    ids=lambda plan: ",".join(f"{name}={value}" for name, value in plan.items()),
)
def test_what_is_pinned_is_read_back(engine, plan):
    trace = run(engine, plan)
    assert trace.refused is None
    assert trace.observed == plan


def test_the_numbers_of_a_tactic_are_those_of_this_library(probes):
    try:
        found = probes.gemm.header_numbers()
    except FileNotFoundError as fault:
        pytest.skip(str(fault))
    assert [(field, one["differing"]) for field, one in found.items() if one["differing"]] == []
    assert all(one["header"] > 3 for one in found.values())


def test_every_other_example_is_read_back_or_refused_with_a_reason(engine):
    plans = [plan for name, plan in wanted() if plan and name in plan and not environment(plan)]
    traces = [run(engine, plan) for plan in plans if factors()[next(iter(plan))]["device"] != "cpu"]
    silent = [(trace.plan, trace.observed) for trace in traces if not trace.refused and trace.observed != trace.plan]
    assert silent == []


def test_a_tactic_that_the_library_offers_is_pinned_and_found_in_its_log(engine, probes):
    layer = next(layer for role, layer in engine_layers(engine) if role == "q")
    problem = probes.Problem(probes.lt(), "bfloat16", 1, layer.out_features, layer.in_features)
    tactic = str(from_numbers(problem.offered(32 << 20, 1)[0][0]))
    trace = run(engine, {"gemm.q.algo": tactic})
    assert trace.refused is None
    assert trace.observed["gemm.q.algo"] == tactic
    assert trace.details["gemm_tactics"]["q"] == [tactic]
    unpinned = run(engine, {})
    assert unpinned.details["gemm_tactics"].keys() >= {"q", "k", "v", "o", "gate", "up", "down", "lm_head"}


def engine_layers(engine):
    from replay.factors import Setup

    return Setup(load=engine.models.load, model=engine.models.load("bfloat16")).linear_layers()


@pytest.mark.parametrize(
    ("tactic", "says"),
    [("id=9999", "CUBLAS_STATUS_"), ("id=66,tile=8x8,stages=16x1,custom=9999", "CUBLAS_STATUS_")],
)
def test_a_tactic_that_the_library_does_not_take_is_refused(engine, tactic, says):
    trace = run(engine, {"gemm.q.algo": tactic})
    assert says in (trace.refused or "")


def test_a_workspace_that_is_too_small_is_refused(engine, probes, monkeypatch):
    tactic = probes.split_tactic(128, 256)
    monkeypatch.setenv("CUBLASLT_WORKSPACE_SIZE", "0")
    assert "bytes of workspace" in (run(engine, {"gemm.down.algo": tactic}).refused or "")


def test_the_order_of_additions_is_exact_where_it_is_ours(probes):
    for splits in (1, 2, 3, 4):
        parts = [len(part) for part in torch.arange(576).tensor_split(splits)]
        shape = Shape(8, 192, 576, torch.bfloat16, "cuda")
        assert chained(lambda x, w: split_linear(splits, x, w, None), shape, parts)  # noqa: B023 - called at once
        tile = probes.triton_tile(splits)
        assert tree_of(tile, shape).digest == tree_of(tile, Shape(64, 192, 576, torch.bfloat16, "cuda")).digest
    assert len({tree_of(probes.triton_tile(splits), shape).digest for splits in (1, 2, 3)}) == 3


def test_a_row_has_the_same_bits_for_every_m_with_the_triton_kernel(probes):
    x, w = probes.operands(256, 1536, 576)
    product = probes.triton_tile(1)
    whole = product(x, w)
    assert all(torch.equal(product(x[:m], w), whole[:m]) for m in (1, 2, 3, 16, 17, 64, 255))


@pytest.mark.parametrize("factor", ["gemm.k_split", "gemm.triton", "gemm.down.algo"])
def test_a_planted_split_of_k_is_proven(engine, probes, factor):
    incident, reference = {
        "gemm.k_split": ({"gemm.k_split": "3"}, {"gemm.k_split": "1"}),
        "gemm.triton": ({"gemm.triton": "tile=64x64x32,splitk=2"}, {"gemm.triton": "tile=64x64x32,splitk=1"}),
        "gemm.down.algo": ({"gemm.down.algo": probes.split_tactic(128, 256)}, {}),
    }[factor]
    case = probes.planted(engine, incident, reference)
    verdict = prove(case, [], probes.run_with(engine))
    assert verdict.outcome == "proven", verdict.claim
    assert [one.factor for one in verdict.factors] == [factor]
