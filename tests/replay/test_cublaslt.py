"""A tactic goes to the library as the header says, multiplies the right way round, and is read back from its log."""

import ctypes
import types

import pytest
import torch
from fake_cublaslt import FakeLibrary

from replay.cublaslt import Algo, Heuristic, LtError, Problem
from replay.engines import transformers_lt
from replay.engines.transformers_lt import LtLog
from replay.engines.transformers_profile import with_log
from replay.factors import Evidence, LinearCall, Unpinnable, factor
from replay.factors.gemm_algo import Products
from replay.tactic import Tactic, parse

TACTIC = parse("id=66,tile=64x64,stages=64xAUTO,splitk=3,reduction=compute_type,swizzle=1,custom=2,inner=MMA16816,"
               "cluster=2x1x1")  # fmt: skip
NUMBERS = {0: 66, 1: 15, 2: 3, 3: 2, 4: 1, 5: 2, 6: 35, 7: 4, 8: 3}


@pytest.fixture
def lt(monkeypatch):
    """Return the fake library, and let torch have a stream."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: types.SimpleNamespace(cuda_stream=7))
    return FakeLibrary()


def test_the_structs_have_the_sizes_of_the_header():
    assert (ctypes.sizeof(Algo), ctypes.sizeof(Heuristic)) == (64, 96)
    assert (Heuristic.workspace.offset, Heuristic.state.offset, Heuristic.waves.offset) == (64, 72, 76)


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 4, 8), (6, 1, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_that_of_a_linear_layer(lt, shape, bias):
    m, n, k = shape
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-4, 4, size, generator=draw).float() for size in ((m, k), (n, k)))
    added = torch.arange(n).float() if bias else None
    products = Products(lt, TACTIC, "gemm.q.algo")
    out = products(x[None], weight, added)
    assert torch.equal(out[0], torch.nn.functional.linear(x, weight, added))
    assert lt.launched == [(m, n, k, NUMBERS)]
    products(x[None], weight, added)
    products.close()
    made = [key for key, facts in lt.made.items() if facts != ["handle"]]
    assert sorted(lt.freed) == sorted(made), "every descriptor is freed once, and made once a shape"


def test_a_transposed_weight_is_taken_as_it_reads(lt):
    x, weight = torch.arange(6.0).reshape(2, 3), torch.arange(12.0).reshape(3, 4).t()
    assert torch.equal(Products(lt, Tactic(5), "")(x, weight, None), x @ weight.t())


def test_the_library_is_handed_addresses_that_it_may_read_16_bytes_from(lt, monkeypatch):
    seen = []
    run = Problem.run
    monkeypatch.setattr(Problem, "run", lambda self, made, *places: (seen.extend(places[:2]), run(self, made, *places)))
    x, weight = torch.arange(7.0)[1:].reshape(2, 3), torch.arange(13.0)[1:].reshape(4, 3)
    assert x.data_ptr() % 16
    assert torch.equal(Products(lt, Tactic(5), "")(x, weight, None), x @ weight.t())
    assert [place % 16 for place in seen] == [0, 0]


@pytest.mark.parametrize(
    ("tactic", "says"),
    [
        (Tactic(7), "cublasLtMatmulAlgoInit answered CUBLAS_STATUS_INVALID_VALUE"),
        (Tactic(66, custom=4), "cublasLtMatmulAlgoCheck answered CUBLAS_STATUS_NOT_SUPPORTED"),
    ],
)
def test_what_the_library_does_not_take_is_refused_with_its_word(lt, tactic, says):
    products = Products(lt, tactic, "gemm.q.algo")
    with pytest.raises(Unpinnable, match=f"gemm.q.algo={tactic}, M=2 N=4 K=3 float32: {says}"):
        products(torch.ones(2, 3), torch.ones(4, 3), None)
    with pytest.raises(LtError, match=says):
        Problem(lt, "float32", 2, 4, 3).prepare(tactic)


def test_too_small_a_workspace_and_another_dtype_are_refused(lt, monkeypatch):
    products = Products(lt, TACTIC, "gemm.q.algo")
    with pytest.raises(Unpinnable, match="float64: not a dtype of this pin"):
        products(torch.ones(2, 3).double(), torch.ones(4, 3).double(), None)
    monkeypatch.setenv("CUBLASLT_WORKSPACE_SIZE", "3")
    with pytest.raises(Unpinnable, match="needs 4096 bytes of workspace, the process has 3072"):
        products(torch.ones(2, 3), torch.ones(4, 3), None)


def test_lines_of_the_log_belong_to_the_layer_that_was_open(lt, monkeypatch):
    monkeypatch.setattr(transformers_lt, "library", lambda _cuda: lt)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    log, products = LtLog("cuda"), Products(lt, Tactic(66), "")
    for rows in (2, None, 5):
        if rows is not None:
            log.enter()
            products(torch.ones(rows, 3), torch.ones(4, 3), None)
            log.leave()
        products(torch.ones(9, 3), torch.ones(4, 3), None)  # attention, say
    log.close()
    assert (lt.mask, lt.callback) == (0, None)
    calls = [with_log(LinearCall(0, "q", ()), log.lines(number)) for number in range(3)]
    assert [call.products for call in calls] == [(("cublasLtMatmul", 2, 3),), (("cublasLtMatmul", 5, 3),), ()]
    evidence = Evidence(calls=calls[:2])
    assert factor("gemm.q.algo").observe(evidence) == str(Tactic(66))
    assert factor("gemm.k.algo").observe(evidence) is None
    assert factor("gemm.backend").observe(evidence) == "cublaslt"
    assert factor("gemm.q.algo").observe(Evidence(calls=calls)) is None, "one call was not seen"


def test_a_device_of_another_kind_has_no_log(lt, monkeypatch):
    monkeypatch.setattr(transformers_lt, "library", lambda _cuda: lt)
    LtLog("cpu")
    assert lt.callback is None
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(transformers_lt, "library", lambda _cuda: (_ for _ in ()).throw(OSError("none")))
    assert LtLog("cuda").lines(0) == ()


def line(m, tactic, *, function="cublasLtMatmul"):
    return (
        f"[{function}] Adesc=[type=R_32F rows=64 cols=32 ld=64] Bdesc=[type=R_32F rows=64 cols={m} ld=64] "
        f"Ddesc=[type=R_32F rows=32 cols={m} ld=32] computeDesc=[transa=OP_T] algo=[{tactic}] workSpaceSizeInBytes=0"
    )


SPLIT = "algoId=66 numSplitsK=2 reductionScheme=REDUCTION_SCHEME_COMPUTE_TYPE"
WHOLE = "algoId=66"


@pytest.mark.parametrize(
    ("lines", "parts", "found"),
    [
        ([[line(3, WHOLE)], [line(1, WHOLE)]], 1, Tactic(66)),
        ([[line(3, WHOLE), line(2, SPLIT)]], 2, None),  # two tactics
        ([[line(3, SPLIT)]], 2, Tactic(66, splitk=2, reduction="compute_type")),
        ([[line(3, SPLIT)]], 1, None),  # the sums show no split
        ([[line(3, "algoId=66 unknown=1")]], 1, None),
    ],
)
def test_a_tactic_is_read_back_only_if_logged_alone_and_borne_out_by_the_sums(lines, parts, found):
    def linear(_role, x, weight):
        pieces = zip(x.tensor_split(parts, -1), weight.tensor_split(parts, -1), strict=True)
        return sum(one_by_one(a, b) for a, b in pieces)

    calls = [LinearCall(0, "q", (), lt=tuple(one)) for one in lines]
    evidence = Evidence(calls=calls, linear=linear, dtype="float32")
    assert factor("gemm.q.algo").observe(evidence) == (None if found is None else str(found))


def one_by_one(x, weight):
    total, *others = (x[:, None] * weight).unbind(-1)
    for other in others:
        total = total + other
    return total


def asked(mask, workspace=1 << 20):
    return f"[cublasLtMatmulAlgoGetHeuristic] preference=[maxWavesCount=0.0{mask} maxWorkspaceSizeinBytes={workspace}] "


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        ("", "true"),
        (" reductionSchemeMask=REDUCTION_SCHEME_COMPUTE_TYPE", "false"),
        (" reductionSchemeMask=REDUCTION_SCHEME_NONE", "no_split_k"),
        (" reductionSchemeMask=REDUCTION_SCHEME_INPLACE", None),
    ],
)
def test_the_switch_for_reductions_is_what_the_heuristic_might_choose_from(mask, found):
    one = Evidence(calls=[LinearCall(0, "q", (), lt=(asked(mask),))])
    assert factor("gemm.reduced_precision_reduction").observe(one) == found
    assert factor("gemm.workspace_kib").observe(one) == "1024"
    mixed = Evidence(calls=[*one.calls, LinearCall(0, "k", (), lt=(asked(" reductionSchemeMask=X", 512),))])
    assert factor("gemm.workspace_kib").observe(mixed) is None
    for name in ("gemm.reduced_precision_reduction", "gemm.workspace_kib", "gemm.backend", "gemm.triton"):
        assert factor(name).observe(Evidence()) is None


def test_cublas_is_told_from_cublaslt_by_the_name_it_calls():
    calls = [LinearCall(0, "q", (), lt=(line(3, WHOLE, function="cublasLtTSTMatmul"),))]
    assert factor("gemm.backend").observe(Evidence(calls=calls)) == "cublas"
    calls += [LinearCall(0, "k", (), lt=(line(3, WHOLE),))]
    assert factor("gemm.backend").observe(Evidence(calls=calls)) is None
