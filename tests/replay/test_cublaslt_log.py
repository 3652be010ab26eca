"""Lines of the cuBLASLt log, as library 13.1.0.3 wrote them here without a device and as public reports quote them."""

import pytest

from replay.cublaslt_log import Allowed, allowed, executed
from replay.tactic import Tactic

# Library 13.1.0.3 in this project, called without a device: the mask set to nothing, 0, 2, 7 and 1 | 2 in turn.
ASKED = (
    "[cublasLtMatmulAlgoGetHeuristic] Adesc=[type=R_16BF rows=576 cols=192 ld=576] Bdesc=[type=R_16BF rows=576 cols=25 "
    "ld=576] Cdesc=[type=R_16BF rows=192 cols=25 ld=192] Ddesc=[type=R_16BF rows=192 cols=25 ld=192] "
    "preference=[maxWavesCount=0.0{}] computeDesc=[computeType=COMPUTE_32F scaleType=R_32F transa=OP_T]"
)
# In the words of two public reports: fp32 through cuBLAS, where K was split in 14.
RAN = (
    "[2026-04-02 10:11:12][cublasLt][1][Trace][cublasLtSSSMatmul] A=0X1 Adesc=[type=R_32F rows=2304 cols=768 ld=2304] "
    "B=0X2 Bdesc=[type=R_32F rows=2304 cols=144 ld=2304] C=0X3 Cdesc=[type=R_32F rows=768 cols=144 ld=768] D=0X3 "
    "Ddesc=[type=R_32F rows=768 cols=144 ld=768] computeDesc=[computeType=COMPUTE_32F scaleType=R_32F transa=OP_T "
    "smCountTarget=128] algo=[algoId=0 tile=MATMUL_TILE_128x64 reductionScheme=REDUCTION_SCHEME_COMPUTE_TYPE "
    "numSplitsK=14] workSpace=0X4 workSpaceSizeInBytes=6193152 beta=0 outOfPlace=0 stream=0X0"
)


def test_what_ran_is_named_in_the_row_major_terms_of_torch():
    one = executed(RAN)
    assert (one.function, one.m, one.n, one.k, one.workspace) == ("cublasLtSSSMatmul", 144, 768, 2304, 6193152)
    assert one.tactic == Tactic(0, tile="128x64", splitk=14, reduction="compute_type")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", Allowed("all", 0)),
        (" reductionSchemeMask=REDUCTION_SCHEME_NONE maxWorkspaceSizeinBytes=1048576", Allowed("none", 1 << 20)),
        (" reductionSchemeMask=REDUCTION_SCHEME_COMPUTE_TYPE", Allowed("compute_type", 0)),
        (
            " reductionSchemeMask=REDUCTION_SCHEME_INPLACE | REDUCTION_SCHEME_COMPUTE_TYPE maxWorkspaceSizeinBytes=7",
            Allowed("inplace|compute_type", 7),
        ),
    ],
)
def test_what_the_heuristic_might_use_is_read(given, found):
    assert allowed(ASKED.format(given)) == found
    assert executed(ASKED.format(given)) is None


@pytest.mark.parametrize(
    "line",
    [
        "[cublasLtMatmul] A=0X1000 Adesc=0X560B457772D0 B=0X2000 algo=0X7FA8032DD770 workSpaceSizeInBytes=1048576",
        "[cublasLtCreate] lightHandle=0X7FA8034453C0",
        RAN.replace("numSplitsK", "numSplitsOfAnotherVersion"),
        "",
    ],
)
def test_other_lines_say_nothing(line):
    assert executed(line) is None
    assert allowed(line) is None
