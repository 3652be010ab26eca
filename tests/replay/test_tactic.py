"""A tactic means the same as text, as log line and as numbers; the numbers are the header's."""

import hashlib
import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay import tactic
from replay.catalogue import PinError, check_pin
from replay.tactic import Tactic, TacticError, from_numbers, parse

LINE = (
    "[2026-05-04 15:08:47][cublasLt][5][Trace][cublasLtMatmul] A=0X3 Adesc=[type=R_16BF rows=1024 cols=2048 ld=1024] "
    "computeDesc=[computeType=COMPUTE_32F scaleType=R_32F transa=OP_T smCountTarget=18] algo=[algoId=66 "
    "tile=MATMUL_TILE_64x16 stages=MATMUL_STAGES_64xAUTO customOption=1 clusterShape=CLUSTER_SHAPE_4x1x1] workSpace=0X0"
)
SPLIT = "algo=[algoId=0 tile=MATMUL_TILE_128x64 reductionScheme=REDUCTION_SCHEME_COMPUTE_TYPE numSplitsK=14]"
TEXT = "id=66,tile=64x16,stages=64xAUTO,splitk=1,reduction=none,swizzle=0,custom=1,inner=undefined,cluster=4x1x1"

# sha256 over the sorted NAME=NUMBER lines of the enums in cublasLt.h of the package nvidia-cublas 13.1.0.3.
HEADER = {
    "tiles": (635, "ec3dc0ff1c0640b4"),
    "stages": (37, "16509884dddffdce"),
    "clusters": (51, "b4a6e926b6c21602"),
    "inner_shapes": (5, "97d012551b8fc9a5"),
    "reductions": (4, "fc3c1584ff1d20de"),
}


@pytest.mark.parametrize("table", HEADER)
def test_the_numbers_are_those_of_the_header(table):
    names = getattr(tactic, table)()
    lines = sorted(
        (name if name[0].isdigit() or name.startswith("MMA") else name.upper(), at) for name, at in names.items()
    )
    found = hashlib.sha256("\n".join(f"{name}={number}" for name, number in lines).encode()).hexdigest()[:16]
    assert (len(names), found) == HEADER[table]


def test_a_log_line_is_the_tactic_with_defaults_filled_in():
    assert str(parse(LINE)) == TEXT
    assert parse(SPLIT) == Tactic(0, tile="128x64", splitk=14, reduction="compute_type")


def test_only_what_differs_from_the_default_is_set():
    assert parse(TEXT).settings() == {"tile": 312, "stages": 35, "custom": 1, "cluster": 4}
    assert Tactic(5).settings() == {}


numbers = st.fixed_dictionaries(
    {"id": st.integers(0, 99), "splitk": st.integers(1, 64), "swizzle": st.integers(0, 1), "custom": st.integers(0, 99)}
    | {name: st.sampled_from(sorted(table().values())) for name, table in tactic.TABLES.items()}
)


@given(numbers)
def test_text_and_numbers_go_both_ways(given):
    one = from_numbers(given)
    assert parse(str(one)) == one
    assert {"id": one.id} | tactic.DEFAULTS | one.settings() == given
    assert Tactic(**json.loads(json.dumps(asdict(one)))) == one, "as `algo` of a kernel record"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no field of a cuBLASLt tactic"),
        ("tile=64x64", "needs its id"),
        ("id=66,tile=65x64", "rows x columns"),
        ("id=66,tiles=64x64", "'tiles=64x64' is no field"),
        ("id=66,id=67", "given twice"),
        ("id=x", "id cannot be 'x'"),
        ("id=66,cluster=2x2", "as 2x1x1"),
        ("id=66,splitk=99999999999999", "splitk cannot be"),
        ("algo=[algoId=66 schedulingMode=3]", "'schedulingMode=3' is no field"),
    ],
)
def test_what_is_no_tactic_is_said(text, says):
    with pytest.raises(TacticError, match=says):
        parse(text)


def test_a_pin_may_be_a_log_line_and_is_kept_as_the_one_text():
    assert check_pin(f"gemm.q.algo={LINE}") == ("gemm.q.algo", TEXT)
    assert check_pin("gemm.down.algo=id=5,splitk=3,reduction=2") == (
        "gemm.down.algo",
        str(Tactic(5, splitk=3, reduction="compute_type")),
    )
    with pytest.raises(PinError, match=r"gemm\.q\.algo: a cuBLASLt tactic needs its id"):
        check_pin("gemm.q.algo=tile=64x64")
