"""Another engine for the same request on a real vLLM: what is honoured is read back, what a CPU has not is refused."""

import importlib.util
import shutil

import pytest

if getattr(importlib.util.find_spec("vllm"), "origin", None) is None:
    pytest.skip("vLLM is not in this environment (make test-vllm)", allow_module_level=True)

from made import ALONE, TOKENS, made_case, run_case

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

SAME = {
    "engine.attention_backend": "CPU_ATTN", "engine.kv_dtype": "auto", "engine.linear_backend": "auto",
    "engine.moe_backend": "auto", "engine.batch_invariant": "false", "graph.mode": "eager",
}  # fmt: skip
NOT_HERE = {
    "engine.attention_backend": "FLASH_ATTN", "engine.kv_dtype": "nvfp4", "engine.linear_backend": "cutlass",
    "engine.moe_backend": "triton", "engine.batch_invariant": "true", "graph.mode": "cuda_graph_full",
}  # fmt: skip


def test_the_values_of_this_platform_are_honoured_and_change_no_bit(tmp_path):
    plain, *same = run_case(
        tmp_path, made_case(), {"plan": ALONE}, *({"plan": ALONE | {name: value}} for name, value in SAME.items())
    )
    assert [one["missing"] for one in same] == [None] * len(SAME)
    assert [one["observed"][name] for name, one in zip(SAME, same, strict=True)] == list(SAME.values())
    assert {tuple(one["bits"]) for one in same} == {tuple(plain["bits"])}
    assert len(plain["bits"]) == TOKENS


def test_what_a_cpu_has_not_is_refused_with_the_reason(tmp_path):
    found = run_case(tmp_path, made_case(), *({"plan": ALONE | {name: value}} for name, value in NOT_HERE.items()))
    assert [name in str(one["missing"]) for name, one in zip(NOT_HERE, found, strict=True)] == [True] * len(NOT_HERE)
    assert [one["bits"] for one in found] == [[]] * len(NOT_HERE)


def test_a_cache_in_eight_bits_is_another_engine(tmp_path):
    plain, narrow = run_case(tmp_path, made_case(), {"plan": ALONE}, {"plan": ALONE | {"engine.kv_dtype": "fp8"}})
    assert narrow["missing"] is None
    assert narrow["observed"]["engine.kv_dtype"] == "fp8"
    assert narrow["bits"] != plain["bits"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with a C++ compiler")
def test_a_compiled_model_is_read_back_as_such(tmp_path):
    plain, compiled = run_case(tmp_path, made_case(), {"plan": ALONE}, {"plan": ALONE | {"graph.mode": "compiled"}})
    assert plain["observed"] == ALONE
    assert compiled["missing"] is None
    assert compiled["observed"]["graph.mode"] == "compiled"
    assert len(compiled["bits"]) == TOKENS
