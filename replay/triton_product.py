"""x·Wᵀ in Triton with the tile and the split of K given: one kernel for every M, added in one order.

A row's bits depend on the block and the split of K, not on how many rows there are: with both fixed it is
batch-invariant. Partial sums are kept in fp32 and added in the order of the splits, without atomics.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

__all__ = ["OutOfResources", "Tile", "parse", "product", "tile_of"]

NAME = "forensics_product"


@dataclass(frozen=True)
class Tile:
    """Block of M, N and K, powers of two from 16, and the parts that K is cut into."""

    m: int
    n: int
    k: int
    splits: int = 1

    def __str__(self) -> str:
        """Return the text of the factor."""
        return f"tile={self.m}x{self.n}x{self.k},splitk={self.splits}"

    def uses_all_splits(self, depth: int) -> bool:
        """Return whether K of `depth` terms leaves something to add for the last split."""
        return (self.splits - 1) * self.k * -(-depth // (self.k * self.splits)) < depth


def parse(text: str) -> Tile:
    """Return the tile of `tile=64x64x32,splitk=2`. Raises ValueError."""
    found = re.fullmatch(r"tile=(\d{1,4})x(\d{1,4})x(\d{1,4}),splitk=(\d{1,3})", text)
    if found is None:
        raise ValueError("give tile=MxNxK,splitk=S, as tile=64x64x32,splitk=1")
    tile = Tile(*(int(part) for part in found.groups()))
    if any(size < 16 or size > 256 or size & (size - 1) for size in (tile.m, tile.n, tile.k)) or tile.splits < 1:
        raise ValueError("each side of a tile is a power of two from 16 to 256, and splitk at least 1")
    return tile


def compiled_name(specialisation: Any) -> str:
    """Return the kernel's name from the constants that it was compiled with: so the profiler shows what ran."""
    constants = specialisation.constants
    sizes = [constants[name] for name in ("block_m", "block_n", "block_k", "split_k")]
    return f"{NAME}_{'x'.join(map(str, sizes))}"


def tile_of(kernel: str) -> Tile | None:
    """Return the tile of a kernel's name in a profile, None for a kernel that is not ours."""
    found = re.match(rf"{NAME}_(\d+)x(\d+)x(\d+)x(\d+)", kernel)
    return Tile(*(int(part) for part in found.groups())) if found else None


@triton.jit(repr=compiled_name, do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    x_ptr, w_ptr, out_ptr, rows, columns,
    depth: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, split_k: tl.constexpr,
):  # fmt: skip
    """Write partial sums [split_k, rows, columns]; split s adds the K blocks of its own consecutive part in order."""
    part = tl.program_id(2)
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    blocks: tl.constexpr = (depth + block_k * split_k - 1) // (block_k * split_k)
    total = tl.zeros((block_m, block_n), dtype=tl.float32)
    for block in range(blocks):
        k = (part * blocks + block) * block_k + tl.arange(0, block_k)
        inside = k < depth
        x_at = x_ptr + m[:, None].to(tl.int64) * depth + k[None, :]
        w_at = w_ptr + n[None, :].to(tl.int64) * depth + k[:, None]
        x = tl.load(x_at, mask=(m < rows)[:, None] & inside[None, :], other=0.0)
        w = tl.load(w_at, mask=(n < columns)[None, :] & inside[:, None], other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    out_at = out_ptr + (part * rows + m[:, None]).to(tl.int64) * columns + n[None, :]
    tl.store(out_at, total, mask=(m < rows)[:, None] & (n < columns)[None, :])


def product(tile: Tile, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return x·Wᵀ + b for x [..., K] and W [N, K], in x's dtype."""
    flat, weight = x.reshape(-1, x.shape[-1]).contiguous(), weight.contiguous()
    (rows, depth), columns = flat.shape, weight.shape[0]
    partial = torch.empty(tile.splits, rows, columns, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(rows, tile.m), triton.cdiv(columns, tile.n), tile.splits)
    _product[grid](flat, weight, partial, rows, columns, depth=depth, block_m=tile.m, block_n=tile.n, block_k=tile.k,
                   split_k=tile.splits)  # fmt: skip
    total = partial[0]
    for part in partial[1:]:
        total = total + part
    out = total.to(x.dtype).reshape(*x.shape[:-1], columns)
    return out if bias is None else out + bias
