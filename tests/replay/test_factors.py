"""Each factor: its pin takes, another path sees it, and what cannot be honoured is refused."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from replay_worlds import make_case

from replay.case import Arm, Row
from replay.catalogue import environment, factors
from replay.factors import Evidence, Setup, Unpinnable, factor, file_of, gemm_k_split

FOLDER = Path(gemm_k_split.__file__).parent
PLAN = {
    "batch.rows": "4", "batch.row": "2", "batch.left_pad": "5", "batch.mask_path": "explicit",
    "attention.backend": "flash", "dtype.weights": "bfloat16", "cpu.threads": "1", "token.rule": "argmax",
}  # fmt: skip
ALONE = PLAN | {"batch.rows": "1", "batch.row": "0", "batch.left_pad": "0", "batch.mask_path": "implicit"}
IDS = tuple(range(5, 30))


@pytest.fixture(scope="module")
def run(model_path):
    """Return the engine's `run` for a request of 25 ids and 3 tokens."""
    from replay.engines.transformers import Engine

    rows = tuple(
        Row(name, len(ids), ids) for name, ids in (("a", IDS[:9]), ("b", IDS[:30]), ("i", IDS), ("c", (5,) * 30))
    )
    arms = {"incident": Arm("run", "i", PLAN, rows=rows), "reference": Arm("run2", "r", ALONE)}
    case = make_case(token_ids=IDS, flip_index=2, engine={"engine": "transformers", "dtype": "bfloat16"}, **arms)
    engine = Engine(case, str(model_path))
    yield engine.run
    engine.stop()


def test_a_file_is_a_factor_that_the_catalogue_calls_pinnable():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    pinnable = {file_of(name) for name, entry in factors().items() if entry["pinnable"]}
    assert files == pinnable


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch.rows": "7"},
        {"batch.rows": "3"},
        {"batch.row": "0"},
        {"batch.left_pad": "0"},
        {"batch.left_pad": "17"},
        {"batch.left_pad": "0", "batch.mask_path": "implicit"},
        {"batch.neighbours": "zeros"},
        {"batch.neighbours": "random"},
        {"batch.neighbours": "recorded"},
        {"gemm.k_split": "1"},
        {"gemm.k_split": "3"},
        {"attention.backend": "math"},
        {"attention.backend": "eager"},
        {"dtype.weights": "float32"},
        {"token.rule": "topk0"},
        {"cpu.threads": "2"},
    ],
)
def test_what_is_pinned_is_read_back(run, changes):
    plan = PLAN | changes
    trace = run(plan)
    assert trace.refused is None
    assert trace.observed == plan
    assert len(trace.tokens) == len(trace.logits_sha256) == 3
    assert trace.details["rows"] == int(plan["batch.rows"])
    assert trace.details["width"] == len(IDS) + int(plan["batch.left_pad"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch.row": "4"}, "has no such row"),
        ({"batch.mask_path": "implicit"}, "needs an explicit mask"),
        ({"batch.rows": "5", "batch.neighbours": "recorded"}, "no recorded launch"),
        ({"batch.left_pad": "6", "batch.neighbours": "recorded"}, "no recorded launch"),
        ({"attention.backend": "cudnn"}, "not available on a CPU"),
        ({"attention.backend": "paged"}, "pin batch.schedule too"),
        ({"token.rule": "sample"}, "generator is not on record"),
        ({"gemm.k_split": "100000"}, "fewer than 100000 input features"),
        ({"cpu.aten_capability": "avx2"}, "was not started with it"),
        ({"graph.mode": "eager"}, "not on transformers"),
        ({"gemm.q.rows": "10"}, "M of 10 is below the 25 tokens"),
        ({"prefill.chunks": "10,15"}, "not together with padding"),
        ({"batch.launch_tokens": "100"}, "4 rows of 30 make 120"),
        ({"gemm.k_split": "2", "gemm.route": "mm"}, "another pinned factor already computes"),
        ({"gemm.fp32_precision": "tf32"}, "not available on a CPU"),
        ({"cpu.onednn_isa": "DEFAULT"}, "name the instruction set itself"),
        ({"cpu.mkl_cbwr": "COMPATIBLE"}, "was not started with it"),
        ({"batch_invariant": "true"}, "was not started with it"),
        ({"gemm.backend": "cublaslt"}, "CUDA device"),
        ({"gemm.workspace_kib": "1024"}, "CUDA device"),
        ({"gemm.reduced_precision_reduction": "false"}, "CUDA device"),
        ({"gemm.fp16_accumulation": "true"}, "CUDA device"),
        ({"gemm.down.algo": "id=66,tile=64x16"}, "gemm.down.algo: needs a CUDA device"),
        ({"gemm.q.algo": "fast"}, "'fast' is no field of a cuBLASLt tactic"),
        ({"gemm.triton": "tile=64x64x32,splitk=1"}, "needs a CUDA device"),
        ({"attention.num_splits": "2"}, "needs a CUDA device"),
        ({"attention.backend": "flash_attention_3"}, "needs a CUDA device"),
    ],
)
def test_what_cannot_be_honoured_is_refused(run, changes, says):
    trace = run(PLAN | changes)
    assert says in (trace.refused or "")
    assert trace.tokens == ()


def test_recorded_neighbours_are_taken_only_for_the_recorded_launch(run):
    assert run(PLAN).details["neighbours"] == "recorded"
    assert run(PLAN | {"batch.rows": "5"}).details["neighbours"] == "random"
    assert run(PLAN | {"batch.left_pad": "4"}).details["neighbours"] == "random"
    assert run(PLAN | {"batch.row": "1"}).details["neighbours"] == "random"  # another request stood there
    assert run(ALONE).details["neighbours"] == "none"


def test_a_pin_that_does_nothing_is_seen_through(run, monkeypatch):
    @contextmanager
    def pretend(_value, _setup):
        yield

    monkeypatch.setattr(gemm_k_split, "pin", pretend)
    assert run(PLAN | {"gemm.k_split": "3"}).observed["gemm.k_split"] == "1"


def test_pins_leave_nothing_behind(run):
    before = run(ALONE)
    for changes in (
        {"gemm.k_split": "3"},
        {"attention.backend": "eager"},
        {"dtype.weights": "float32"},
        {"cpu.threads": "2"},
    ):
        run(PLAN | changes)
    after = run(ALONE)
    assert (before.tokens, before.logits_sha256) == (after.tokens, after.logits_sha256)


def test_the_k_split_changes_bits_on_every_machine(run):
    whole, split = run(ALONE), run(ALONE | {"gemm.k_split": "3"})
    assert whole.logits_sha256[0] != split.logits_sha256[0]


def test_only_factors_that_a_library_reads_once_need_their_own_process():
    assert environment(PLAN) == {}
    assert environment({"cpu.aten_capability": "avx2", "cpu.threads": "2"}) == {"ATEN_CPU_CAPABILITY": "avx2"}


def test_the_catalogue_is_valid_json_with_a_description_each():
    entries = json.loads((FOLDER.parents[1] / "schemas" / "factors.v1.json").read_text())["factors"]
    assert all(entry["description"] for entry in entries)


ROWS = [(120, 120), (200, 200), (40, 40), (25, 25)]


@pytest.mark.parametrize(("asked", "seen"), ROWS)
def test_m_is_forced_up_and_down_and_seen_at_the_operator(run, asked, seen):
    """4 rows of 30 tokens are 120; below that the request's own 25 tokens run once more by themselves."""
    trace = run(PLAN | {"gemm.v.rows": str(asked)})
    assert trace.refused is None
    assert trace.observed["gemm.v.rows"] == str(seen)
    assert trace.details["gemm_rows"]["v"] == seen
    assert trace.details["gemm_rows"]["k"] == 120


def test_rows_at_another_m_are_the_request_s_own_and_no_others():
    import torch

    from replay.engines.transformers_linear import at_rows

    seen = []

    def product(x):
        seen.append(x.reshape(-1, x.shape[-1]).shape[0])
        return x * len(seen)

    x = torch.arange(24.0).reshape(3, 4, 2) + 1
    out = at_rows(product, x, 6, (1, slice(1, 4)))
    assert seen == [12, 6]
    mine = torch.zeros(3, 4, dtype=torch.bool)
    mine[1, 1:] = True
    assert torch.equal(out[mine], 2 * x[mine])
    assert torch.equal(out[~mine], x[~mine])
    seen.clear()
    assert torch.equal(at_rows(product, x, 20, (1, slice(None))), x)
    assert seen == [20]


def test_a_fused_layer_is_refused_with_the_name_that_it_has():
    import torch

    model = torch.nn.ModuleDict({"qkv_proj": torch.nn.Linear(4, 12), "o_proj": torch.nn.Linear(4, 4)})
    setup = Setup(load=lambda _dtype: model, model=model)
    says = "no layer q_proj; it has o_proj, qkv_proj"
    with (
        pytest.raises(Unpinnable, match=says),
        factor("gemm.q.rows").pin("9", setup),
    ):
        pass
    with factor("gemm.o.rows").pin("9", setup):
        assert setup.gemm_rows == {("o", 0): 9}


def test_a_pass_cut_into_chunks_gives_the_chunks_back_and_other_bits_than_recomputing(run):
    whole = run(ALONE)
    chunked = run(ALONE | {"prefill.chunks": "10,15"})
    cached = run(ALONE | {"prefill.cached_prefix": "10"})
    assert (chunked.observed["prefill.chunks"], cached.observed["prefill.cached_prefix"]) == ("10,15", "10")
    assert chunked.logits_sha256 == cached.logits_sha256, "here a cached prefix is a chunk that ran before"
    assert len(whole.tokens) == len(chunked.tokens)


def test_both_paths_of_int8_round_the_same_weights(run):
    fused, first = (run(ALONE | {"quant.int8": path}) for path in ("fused", "dequantise_first"))
    off = run(ALONE)
    near = [abs(a[0] - b[0]) for a, b in zip(fused.top_logits, first.top_logits, strict=True)]
    assert max(near[:1]) < 0.5
    assert len({one.logits_sha256[0] for one in (fused, first, off)}) == 3


def test_the_parts_of_a_split_are_counted_and_borne_out_by_the_sums(run, monkeypatch):
    """Three products that are not added one after the other are no K-split of three."""
    import torch

    def others_first(splits, x, weight, bias):
        first, *rest = zip(x.tensor_split(splits, -1), weight.tensor_split(splits, -1), strict=True)
        total = sum(torch.nn.functional.linear(*one) for one in rest) + torch.nn.functional.linear(*first)
        return total if bias is None else total + bias

    monkeypatch.setattr(gemm_k_split, "split_linear", others_first)
    assert "gemm.k_split" not in run(PLAN | {"gemm.k_split": "3"}).observed
    assert run(PLAN | {"gemm.k_split": "2"}).observed["gemm.k_split"] == "2", "two parts have one order"


def test_the_splits_of_attention_are_read_from_the_operator_s_argument():
    import torch

    from replay.engines.transformers_profile import num_splits

    library = torch.library.Library("forensics_test", "DEF")
    library.define("flash(Tensor q, bool causal, int num_splits=0) -> Tensor")
    library.impl("flash", lambda q, causal, num_splits=0: q.clone(), "CPU")
    with torch.profiler.profile(record_shapes=True) as profiler:
        for count in (4, 1):
            torch.ops.forensics_test.flash(torch.ones(2), True, count)
        torch.ops.aten.topk(torch.ones(4), 2)
    events = [(event.name(), event) for event in profiler.profiler.kineto_results.events()]
    found = [count for name, event in events for count in num_splits(name, event)]
    assert found == [4, 1]
    one, other = Evidence(splits=[4, 4]), Evidence(splits=found)
    assert factor("attention.num_splits").observe(one) == "4"
    assert factor("attention.num_splits").observe(other) is None
    assert factor("attention.num_splits").observe(Evidence()) is None


def test_the_splits_reach_both_functions_of_a_flash_package(monkeypatch):
    from transformers import modeling_flash_attention_utils as flash

    from replay.factors.attention_num_splits import FUNCTIONS, given

    def takes(q, num_splits=0):
        return num_splits

    def takes_none(q):
        return 0

    monkeypatch.setattr(flash, "_loaded_implementation", "flash_attention_3")
    for place in FUNCTIONS:
        monkeypatch.setattr(flash, place, takes)
    with given("5", "flash_attention_3"):
        (plain, padded, *_), _ = flash.lazy_import_flash_attention("flash_attention_3")
        assert (plain("q"), padded("q")) == (5, 5)
    assert [getattr(flash, place) for place in FUNCTIONS] == [takes, takes]
    monkeypatch.setattr(flash, FUNCTIONS[1], takes_none)
    with pytest.raises(Unpinnable, match="takes no num_splits in takes_none"), given("5", "flash_attention_3"):
        pass


@pytest.mark.parametrize(
    ("operators", "found"),
    [
        (["flash_attn_3::fwd"], "flash_attention_3"),
        (["flash_attn::_flash_attn_varlen_forward"], "flash_attention_2"),
        (["flash_attn_3::fwd", "flash_attn::_flash_attn_forward"], None),
        (["aten::_scaled_dot_product_flash_attention"], "flash"),
    ],
)
def test_a_flash_package_is_told_from_torch_by_its_operators(operators, found):
    assert factor("attention.backend").observe(Evidence(operators=[(name, []) for name in operators])) == found
