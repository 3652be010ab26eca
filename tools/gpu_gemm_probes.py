"""What cuBLAS and cuBLASLt do with a matrix product: questions of gpu_evidence.py. All need a CUDA device."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from replay import tactic
from replay.cublaslt import Library, LtError, Prepared, Problem, library
from replay.cublaslt_log import executed
from replay.factors.gemm_algo import Products
from replay.reduction_tree import Product, Shape, TreeError, tree_of
from replay.tactic import TacticError, from_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

BF16 = torch.bfloat16
SHAPES = ((192, 576), (576, 576), (1536, 576), (576, 1536), (2560, 4096))
"""N, K: the layers of a small model, and one that others have measured on a GH200."""
ROWS = (1, 2, 4, 8, 16, 17, 32, 33, 64, 128, 192, 256, 512, 1024)
WORKSPACES = (32 << 20, 1 << 20, 1 << 10, 0)
OFFERED = 8
NO_SPLIT = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "1", "TORCH_BLAS_PREFER_CUBLASLT": "1"}


def lt() -> Library:
    """Return the loaded cuBLASLt."""
    return library(str(torch.version.cuda))


def operands(m: int, n: int, k: int, dtype: torch.dtype = BF16) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x [m, k] and w [n, k], random, the same every time."""
    draw = torch.Generator("cuda").manual_seed(0)
    return tuple(torch.randn(size, k, generator=draw, device="cuda", dtype=dtype) for size in (m, n))  # type: ignore[return-value]


def tree(product: Product, shape: Shape) -> str:
    """Return the order of additions as text and digest, or why there is none."""
    try:
        found = tree_of(product, shape)
    except TreeError as fault:
        return str(fault)
    return f"{found} ({found.digest})"


def shape_of(m: int, n: int, k: int) -> Shape:
    """Return the shape on the device."""
    return Shape(m, n, k, BF16, "cuda")


def header_numbers(folder: Path | None = None) -> dict[str, Any]:
    """Return where the numbers of a tactic's names differ from those in cublasLt.h of the installed library."""
    found = sorted((folder or Path(torch.__file__).parents[1] / "nvidia").rglob("cublasLt.h"))
    if not found:
        raise FileNotFoundError("no cublasLt.h in the packages of this environment")
    text = found[0].read_text(encoding="utf-8", errors="replace")
    differing = {}
    for field, prefix in tactic.PREFIXES.items():
        theirs = {name.lower(): int(at) for name, at in re.findall(rf"\bCUBLASLT_{prefix}(\w+) = (\d+),", text)}
        mine = {name.lower(): at for name, at in tactic.TABLES[field]().items()}
        differing[field] = {"header": len(theirs), "differing": sorted(set(theirs.items()) ^ set(mine.items()))}
    return differing


def offered_tactics() -> list[dict[str, Any]]:
    """Return what the heuristic offers: is it built again from its text, does it repeat, is it torch's, how it adds."""
    return [one for n, k in SHAPES[:1] + SHAPES[-1:] for m in (1, 8, 16, 64, 256) for one in _offered(m, n, k)]


def _offered(m: int, n: int, k: int) -> Iterator[dict[str, Any]]:
    x, w = operands(m, n, k)
    for workspace in WORKSPACES:
        problem = Problem(lt(), "bfloat16", m, n, k)
        try:
            for numbers, prepared in problem.offered(workspace, OFFERED if workspace == WORKSPACES[0] else 1):
                first, second = (_launch(problem, prepared, x, w) for _ in range(2))
                found = {
                    "m": m,
                    "n": n,
                    "k": k,
                    "may_use": workspace,
                    "attributes": numbers,
                    "needs": prepared.workspace,
                }
                found |= {"repeats": torch.equal(first, second), "same_as_torch": torch.equal(first, linear(x, w))}
                yield found | _again(problem, numbers, first, x, w)
        except LtError as fault:
            yield {"m": m, "n": n, "k": k, "may_use": workspace, "fault": str(fault)}
        finally:
            problem.close()


def _again(problem: Problem, numbers: dict[str, int], first: torch.Tensor, x: Any, w: Any) -> dict[str, Any]:
    """Build the tactic from its text, as a pin does: the same bits, or what the library says; and its order."""
    try:
        one = from_numbers(numbers)
        made = problem.prepare(one)
        product = Products(lt(), one, "probe")
        order = tree(lambda x, w: product(x, w, None), shape_of(x.shape[0], w.shape[0], x.shape[1]))
        product.close()
    except (LtError, TacticError) as fault:
        return {"tactic_fault": str(fault)}
    return {"tactic": str(one), "same_from_text": torch.equal(first, _launch(problem, made, x, w)), "order": order}


def _launch(problem: Problem, prepared: Prepared, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    out = torch.full((x.shape[0], w.shape[0]), float("nan"), dtype=x.dtype, device=x.device)
    space = torch.empty(max(prepared.workspace, 1), dtype=torch.uint8, device=x.device)
    stream = torch.cuda.current_stream().cuda_stream
    problem.run(prepared, x.data_ptr(), w.data_ptr(), out.data_ptr(), space.data_ptr(), stream)
    return out


@contextmanager
def blas(name: str) -> Iterator[None]:
    """Let torch prefer a library."""
    previous = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library(name)
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(previous)


def log_lines() -> dict[str, list[str]]:
    """Return the log of one linear layer by either library."""
    found: dict[str, list[str]] = {}
    for name in ("cublas", "cublaslt"):
        x, w = operands(8, 192, 576)
        linear(x, w)
        found[name] = []
        with blas(name), lt().logged(found[name].append):
            linear(x, w)
    return found


def order_by_rows() -> dict[str, Any]:
    """Return, by library and shape, runs of M with one order of additions, the tactic and the kernels of each."""
    return {name: {f"N={n} K={k}": _runs(name, n, k) for n, k in SHAPES} for name in ("cublas", "cublaslt")}


def _runs(name: str, n: int, k: int) -> list[dict[str, Any]]:
    with blas(name):
        found = [(m, tree(linear, shape_of(m, n, k)), *_what_ran(m, n, k)) for m in ROWS]
    return [
        {"rows": [one[0] for one in same], "order": order, "tactics": sorted({one[2] for one in same}),
         "kernels": sorted({one[3] for one in same})}
        for order, group in groupby(found, key=lambda one: one[1]) for same in [list(group)]
    ]  # fmt: skip


def _what_ran(m: int, n: int, k: int) -> tuple[str, str]:
    x, w = operands(m, n, k)
    lines: list[str] = []
    with lt().logged(lines.append):
        linear(x, w)
    with torch.profiler.profile() as profiler:
        linear(x, w)
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    names = [event.name() for event in profiler.profiler.kineto_results.events() if event.device_type() == cuda]
    return " ; ".join(str(one.tactic) for line in lines if (one := executed(line))), " ; ".join(names)


def independence() -> dict[str, Any]:
    """Return whether a row's bits follow the other rows' contents, its place, the order of columns, or alignment."""
    found: dict[str, Any] = {}
    for (n, k), m in ((shape, m) for shape in SHAPES for m in (8, 33, 256)):
        x, w = operands(m, n, k)
        out, other = linear(x, w), torch.cat([x[:1], torch.randn_like(x[1:])])
        at = torch.randperm(n, device="cuda")
        shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(m, k)
        found[f"M={m} N={n} K={k}"] = {
            "other_contents": torch.equal(linear(other, w)[0], out[0]),
            "zeros": torch.equal(linear(torch.cat([x[:1], torch.zeros_like(x[1:])]), w)[0], out[0]),
            "other_place": torch.equal(linear(x.flip(0), w).flip(0), out),
            "other_columns": torch.equal(linear(x, w[at]), out[:, at]),
            "other_alignment": torch.equal(linear(shifted, w), out),
            "as_one_row": torch.equal(linear(x[:1], w)[0], out[0]),
        }
    return found


def orders_without_splits() -> dict[str, Any]:
    """Return the digests by M where splits are forbidden: started so, and set in a running process."""
    command = [sys.executable, str(Path(__file__).resolve())]
    variables = os.environ | NO_SPLIT | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    return {"fresh_process": done.stdout.splitlines()[-1:] or done.stderr[-500:], "here": without_splits(NO_SPLIT)}


def without_splits(variables: dict[str, str] | None = None) -> dict[str, Any]:
    """Return order → rows of M with both switches of reductions off; variables: set here, with workspaces cleared."""
    os.environ.update(variables or {})
    torch._C._cuda_clearCublasWorkspaces()
    matmul = torch.backends.cuda.matmul
    previous = matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = (False, False)
    try:
        with blas("cublaslt"):
            orders = {shape: [(m, tree(linear, shape_of(m, *shape))) for m in ROWS] for shape in SHAPES}
    finally:
        matmul.allow_bf16_reduced_precision_reduction = previous
        for name in variables or {}:
            os.environ.pop(name)
        torch._C._cuda_clearCublasWorkspaces()
    return {f"N={n} K={k}": {order: [m for m, own in found if own == order] for _, order in found}
            for (n, k), found in orders.items()}  # fmt: skip


if __name__ == "__main__":  # the fresh process of orders_without_splits
    print(json.dumps(without_splits()))
