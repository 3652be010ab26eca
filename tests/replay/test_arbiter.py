"""Who is right: float64 really is float64, and a margin is called wrong only beyond what rounding can do."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from replay_worlds import World, by, make_case
from torch.utils._python_dispatch import TorchDispatchMode

from replay.arbiter import arbiter
from replay.engines.transformers import Engine
from replay.engines.transformers_arbiter import Widened, _logits
from replay.trial import Treatment
from replay.workbench import Bench


@pytest.fixture(scope="module")
def engine(model_path):
    torch.set_num_threads(1)
    engine = Engine(None, str(model_path))
    yield engine
    engine.stop()


class Computed(TorchDispatchMode):
    """Keeps the dtypes that products, powers and exponentials of the model computed in."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "bmm", "pow", "mean", "rsqrt", "_softmax", "cos"):
            self.dtypes.add(result.dtype)
        return result


@pytest.mark.parametrize(("widened", "dtypes"), [(True, {torch.float64}), (False, {torch.float64, torch.float32})])
def test_norms_softmax_and_angles_are_computed_in_float64_too(engine, widened, dtypes):
    model = engine.models.load("float64")
    with torch.no_grad(), Widened() if widened else nullcontext(), Computed() as seen:
        _logits(model, [0, 5, 6, 7], [1, 2])
    assert seen.dtypes == dtypes


def test_the_pass_is_the_flips_and_leaves_the_model_as_it_was(engine):
    engine.case = case = make_case()
    trace = engine.run(Treatment({}, arbitrate=True))
    found = trace.details["arbiter"]
    assert found["tokens"] == [9, 8]
    exact = found["float64"]
    assert found["layers"][-1][0] == pytest.approx(exact[0] - exact[1], rel=1e-9)
    assert len(found["layers"]) == 2
    assert 0 < found["largest_error"] < 1e-3
    model = engine.models.load("float32")
    assert model.config._attn_implementation == "sdpa"
    ids = torch.tensor([[*case.token_ids, 7]])  # the token that both arms share goes before
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1]
    assert found["float32"] == pytest.approx(logits[[9, 8]].tolist(), abs=1e-4)


def test_without_a_flip_it_is_refused(engine):
    engine.case = make_case(flip_index=None)
    assert "which two tokens" in engine.run(Treatment({}, arbitrate=True)).refused


class Judged(World):
    def __init__(self, margin, error, top=9):
        super().__init__(by("gemm.k_split", "cpu.threads"))
        self.found = {"tokens": [9, 8], "float64": [margin, 0.0], "float32": [margin, 0.0], "largest_error": error,
                      "top": [top, 1.0], "layers": [[margin, margin]]}  # fmt: skip

    def __call__(self, case, treatment):
        trace = super().__call__(case, treatment)
        return dataclasses.replace(trace, details={"arbiter": self.found}, tokens=()) if treatment.arbitrate else trace


def judged(world, dtype="bfloat16", engine="transformers"):
    bench = Bench(make_case(engine={"engine": engine, "dtype": dtype}), world)
    bench.settle(*(bench.trial(name, plan) for name, plan in zip("ir", bench.plans(), strict=True)))
    found = arbiter(bench)
    assert [one.tokens_equal for one in bench.filed()[2:]] in ([None], [])
    return found


E = 2.0**-20


@pytest.mark.parametrize(
    ("margin", "dtype", "answer"),
    [
        (2 * E * 2**16, "bfloat16", "undecidable"),
        (-2.1 * E * 2**16, "bfloat16", "incident_wrong"),
        (2.1 * E * 2**16, "bfloat16", "reference_wrong"),
        (2.1 * E * 2**13, "float16", "reference_wrong"),
        (2 * E, "float32", "undecidable"),
        (-2.1 * E, "float32", "incident_wrong"),
    ],
)
def test_an_arm_is_wrong_only_beyond_the_rounding_of_its_precision(margin, dtype, answer):
    found = judged(Judged(margin, E), dtype)
    assert (found.answer, found.margin, found.float32_floor) == (answer, margin, 2 * E)


def test_a_third_token_is_named():
    found = judged(Judged(0.25, E, top=3))
    assert found.prefers == "neither"
    assert found.detail == "float64 would choose token 3, 0.75 logits above both"


@pytest.mark.parametrize(
    ("dtype", "engine", "says"), [("int4", "transformers", "precision"), ("bfloat16", "vllm", "only")]
)
def test_what_cannot_be_computed_is_open(dtype, engine, says):
    found = judged(Judged(1.0, E), dtype, engine)
    assert found.answer == "open"
    assert says in found.detail
