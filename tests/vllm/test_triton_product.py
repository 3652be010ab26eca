"""The Triton kernel in Triton's interpreter, on a CPU, and compiled for a GPU that is not there.

vLLM's environment has triton. The interpreter is chosen when triton is imported, so a process of its own runs each.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not in this environment (make test-vllm)", allow_module_level=True)

pytestmark = pytest.mark.vllm

IN_ORDER = """
import json, torch
from replay.reduction_tree import Shape, chained
from replay.triton_product import parse, product

found = {}
draw = torch.Generator().manual_seed(0)
for splits in (1, 2, 3):
    tile = parse(f"tile=16x32x32,splitk={splits}")
    x, w = torch.randn(37, 200, generator=draw), torch.randn(70, 200, generator=draw)
    out = product(tile, x, w, torch.ones(70))
    error = (out.double() - x.double() @ w.double().t() - 1).abs().max().item()
    same = [torch.equal(product(tile, x[:m], w, None), product(tile, x, w, None)[:m]) for m in (1, 2, 16, 17, 36)]
    shape = Shape(1, 64, 192, torch.float32)
    order = chained(lambda x, w: product(tile, x, w, None), shape, [192 // splits] * splits)
    found[splits] = error < 1e-4, all(same), order
x[1] = w[1] = torch.inf
kept = product(tile, x, w, None)[0, 0].isfinite().item()
x[1] = w[1] = 1
whole, halves = (product(parse(f"tile=16x32x32,splitk={n}"), x, w, None) for n in (1, 2))
print(json.dumps([found, torch.equal(whole, halves), kept]))
"""

COMPILED = """
import json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from replay.triton_product import _product, tile_of

constants = {"depth": 576, "block_m": 64, "block_n": 64, "block_k": 32, "split_k": 3}
signature = {"x_ptr": "*bf16", "w_ptr": "*bf16", "out_ptr": "*fp32", "rows": "i32", "columns": "i32"}
signature |= dict.fromkeys(constants, "constexpr")
names = list(signature)
source = ASTSource(_product, signature, {(names.index(name),): value for name, value in constants.items()})
made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
print(json.dumps([str(tile_of(made.metadata.name)), ".entry forensics_product_64x64x32x3" in made.asm["ptx"]]))
"""


def run(code, **variables):
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_tile_is_right_the_same_for_every_m_and_adds_its_splits_in_order():
    found, same_bits_with_two_splits, kept_to_its_own_row = run(IN_ORDER, TRITON_INTERPRET="1")
    assert found == {"1": [True] * 3, "2": [True] * 3, "3": [True] * 3}
    assert not same_bits_with_two_splits
    assert kept_to_its_own_row


def test_the_kernel_is_compiled_under_a_name_that_holds_its_tile(tmp_path):
    assert run(COMPILED, TRITON_CACHE_DIR=str(tmp_path)) == ["tile=64x64x32,splitk=3", True]


@pytest.mark.parametrize(
    "text", ["64x64x32", "tile=64x64x31,splitk=1", "tile=8x64x32,splitk=1", "tile=64x64x32,splitk=0"]
)
def test_what_is_no_tile_is_said(text):
    from replay.triton_product import parse

    with pytest.raises(ValueError, match="tile"):
        parse(text)


def test_a_split_with_nothing_to_add_is_told():
    from replay.triton_product import parse

    assert parse("tile=16x16x32,splitk=2").uses_all_splits(64)
    assert not parse("tile=16x16x32,splitk=3").uses_all_splits(64)


def test_the_profile_s_names_give_the_tile_back():
    from replay.factors import Evidence, LinearCall, factor

    names = ["forensics_product_64x64x32x2"] * 2
    observe = factor("gemm.triton").observe
    assert observe(Evidence(kernels=names)) == "tile=64x64x32,splitk=2"
    assert observe(Evidence(kernels=[*names, "forensics_product_64x64x32x1"])) is None
    assert observe(Evidence(kernels=names, calls=[LinearCall(0, "q", (("aten::mm", 1, 2),))])) is None
