"""What else a GPU does with the factors: questions of gpu_evidence.py. All need a CUDA device."""

from __future__ import annotations

import os
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import gpu_gemm_probes as gemm
import torch
from gpu_gemm_probes import BF16, ROWS, WORKSPACES, lt, operands, shape_of, tree
from planted_flip import planted, run_with
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from replay.cublaslt import LtError, Problem
from replay.doctor import RANDOM_MODEL
from replay.engines.transformers import Engine
from replay.host import library_versions
from replay.prove import prove
from replay.reduction_tree import Product, Shape
from replay.tactic import from_numbers

if TYPE_CHECKING:
    from collections.abc import Callable


def environment() -> dict[str, Any]:
    """Return the versions that the answers belong to."""
    card = torch.cuda.get_device_properties(0)
    return {
        "versions": library_versions(), "cuda": torch.version.cuda, "card": card.name, "sm_count":
        card.multi_processor_count, "capability": f"{card.major}.{card.minor}", "cublaslt": lt().version,
        "arguments": {name: value for name, value in os.environ.items() if name.startswith(("CUBLAS", "TORCH_"))},
    }  # fmt: skip


def attention_by_batch() -> dict[str, Any]:
    """Return whether the first row of decoding attention has the same bits in a batch, and the order over keys."""
    backends = ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")
    return {name: _attention(getattr(SDPBackend, name)) for name in backends}


def _attention(backend: SDPBackend) -> dict[str, Any]:
    draw = torch.Generator("cuda").manual_seed(0)
    sizes = (1, *(4096,) * 2)
    q, k, v = (torch.randn(32, 8, size, 64, generator=draw, device="cuda", dtype=BF16) for size in sizes)

    def over_keys(_x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        keys = w.shape[1]
        zeros = torch.zeros(1, 1, 1, 64, device="cuda", dtype=BF16)
        values = w.t()[None, None].contiguous()
        return scaled_dot_product_attention(zeros, zeros.expand(1, 1, keys, 64), values)[0, 0] * keys

    try:
        with sdpa_kernel([backend]):
            rows = [scaled_dot_product_attention(q[:b], k[:b], v[:b])[0] for b in (1, 2, 8, 32)]
            order = tree(over_keys, Shape(1, 64, 1024, BF16, "cuda"))
    except RuntimeError as fault:
        return {"fault": str(fault)[:300]}
    return {"batch_1_2_8_32_equal_the_one_before": [torch.equal(a, b) for a, b in pairwise(rows)], "order": order}


def triton_tiles() -> dict[str, Any]:
    """Return whether tiles of one block of K give the same bits for every M, and how splits add."""
    n, k = 1536, 576
    x, w = operands(256, n, k)
    found: dict[str, Any] = {}
    base = triton_tile(1)(x, w)
    for splits, size in ((1, "64x64x32"), (1, "128x64x32"), (1, "32x128x32"), (1, "64x64x64"), (2, "64x64x32"),
                         (4, "64x64x32")):  # fmt: skip
        made = triton_tile(splits, size)
        out = made(x, w)
        found[f"tile={size},splitk={splits}"] = {
            "same_as_64x64x32": torch.equal(out, base),
            "error": float((out.double() - x.double() @ w.double().t()).norm() / out.double().norm()),
            "same_for_m": [m for m in ROWS if m <= 256 and torch.equal(made(x[:m], w), out[:m])],
            "order": tree(made, shape_of(1, n, k)),
        }
    return found


def triton_tile(splits: int, size: str = "64x64x32") -> Product:
    """Return our Triton product with a tile and a split of K."""
    from replay.triton_product import parse, product

    return partial(product, parse(f"tile={size},splitk={splits}"), bias=None)


def planted_proofs() -> dict[str, Any]:
    """Return the verdicts on flips whose cause is a split of K: in torch, in Triton, in cuBLASLt."""
    engine = Engine(None, RANDOM_MODEL)
    pairs: dict[str, tuple[dict[str, str], dict[str, str]]] = {
        "gemm.k_split": ({"gemm.k_split": "3"}, {"gemm.k_split": "1"}),
        "gemm.triton": ({"gemm.triton": "tile=64x64x32,splitk=2"}, {"gemm.triton": "tile=64x64x32,splitk=1"}),
        "gemm.down.algo": ({"gemm.down.algo": split_tactic(128, 256)}, {}),
    }
    try:
        return {name: _proof(engine, *pair) for name, pair in pairs.items()}
    finally:
        engine.stop()


def _proof(engine: Engine, incident: dict[str, str], reference: dict[str, str]) -> dict[str, Any]:
    try:
        case = planted(engine, incident, reference)
    except RuntimeError as fault:
        return {"fault": str(fault)}
    verdict = prove(case, [], run_with(engine))
    trials = [{"plan": one.plan, "observed": one.observed, "details": one.details} for one in verdict.trials]
    factors = [one.factor for one in verdict.factors]
    return {"outcome": verdict.outcome, "claim": verdict.claim, "factors": factors, "trials": trials}


def split_tactic(n: int, k: int) -> str:
    """Return a tactic that splits K and that the library takes for every M of a short request. Raises RuntimeError."""
    for numbers, _ in Problem(lt(), "bfloat16", 1, n, k).offered(WORKSPACES[0], 100):
        for splits in (numbers.get("splitk", 1), 2):
            if splits < 2 or not {"tile", "stages"} <= numbers.keys():
                continue
            tactic = from_numbers(numbers | {"splitk": splits, "reduction": 2})
            try:
                for m in (1, 24):
                    Problem(lt(), "bfloat16", m, n, k).prepare(tactic)
            except LtError:
                continue
            return str(tactic)
    raise RuntimeError("no tactic that splits K is taken at both M")


SECTIONS: dict[str, Callable[[], Any]] = {
    one.__name__: one
    for one in (
        gemm.header_numbers, gemm.offered_tactics, gemm.log_lines, gemm.order_by_rows, gemm.independence,
        gemm.orders_without_splits, attention_by_batch, triton_tiles, planted_proofs,
    )
}  # fmt: skip
