"""Each factor: its pin takes, another path sees it, and what cannot be honoured is refused."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from replay_worlds import make_case

from replay.case import Arm, Row
from replay.catalogue import environment, factors
from replay.factors import file_of, gemm_k_split

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
    pinnable = {file_of(name) for name, entry in factors().items() if "transformers" in entry["pinnable"]}
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
        ({"attention.backend": "paged"}, "static batches do not use it"),
        ({"token.rule": "sample"}, "generator is not on record"),
        ({"gemm.k_split": "100000"}, "fewer than 100000 input features"),
        ({"cpu.aten_capability": "avx2"}, "was not started with it"),
        ({"graph.mode": "eager"}, "cannot set it"),
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
