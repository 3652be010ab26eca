"""In which order a matrix product adds its K terms, read from its results alone, on any device.

Method of FPRev (Xie et al., "Revealing Floating-Point Accumulation Orders in Software/Hardware Implementations",
USENIX ATC 2025): all terms are 1, but term i is +BIG and term j −BIG. A 1 that is added before the two meet is
absorbed, so the result counts the terms outside of the smallest partial sum that holds both; K minus it is that sum's
size l(i, j). These sizes determine the tree. One probe is one column of the product, so a call answers N of them at
any forced M. It sees order and splits of K, not how each addition rounds. fp16 has too small a range for BIG.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""x [M, K], w [N, K] → x·wᵀ [M, N]."""

BIG = 2.0**100
COUNTABLE = {torch.float32: 1 << 23, torch.float64: 1 << 23, torch.bfloat16: 240}
"""Ones that a result of a dtype can count exactly; more are counted in slices, with zeros in the other places."""

MOST_WORK = {"cpu": 1 << 37, "cuda": 1 << 44}
"""Multiply-adds that probing may cost on a device: some seconds of one core, or of a GPU."""


Additions = tuple[tuple[tuple[int, ...], ...], ...]
"""Additions to one partial sum, in order: each the partial sums that join it at once, as sorted terms."""


class TreeError(Exception):
    """There is no tree to be had; the message says why."""


@dataclass(frozen=True)
class Shape:
    """A product of x [m, k] and w [n, k] in a dtype on a device."""

    m: int
    n: int
    k: int
    dtype: torch.dtype = torch.bfloat16
    device: str = "cpu"


@dataclass(frozen=True)
class Tree:
    """The order of additions over terms 0 to k−1.

    joins: a partial sum, named by its lowest term → its additions. Where more than one partial sum joins at once, the
    addition is fused, as in a tensor core.
    """

    k: int
    joins: dict[int, Additions]

    @property
    def digest(self) -> str:
        """Return 12 hexadecimal digits that are equal for equal trees."""
        return hashlib.sha256(repr(sorted(self.joins.items())).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        """Return the tree along term 0, from the last addition down: `K=576 as 288+288; first 288 as 9×64; …`."""
        levels: list[str] = []
        size, additions = self.k, self.joins[0]
        while additions:
            text, before, additions = _level(additions, size)
            levels.append(f"first {size} as {text}" if levels else f"K={size} as {text}")
            size = before
        return "; ".join(levels) or f"K={self.k}"


def _level(additions: Additions, size: int) -> tuple[str, int, Additions]:
    """Return how the last additions of one kind made `size` terms, the size that they began with, and those before."""
    kind, count = [len(part) for part in additions[-1]], 1
    while count < len(additions) and [len(part) for part in additions[-1 - count]] == kind:
        count += 1
    rest, taken = additions[: len(additions) - count], additions[len(additions) - count :]
    before = size - count * sum(kind)
    if len(kind) > 1:
        whole = count == 1 and {before, *kind} == {1}
        times = f"{count}×" if count > 1 else ""
        text = f"{_sum([1, *kind])} at once" if whole else f"{before}+{times}({_sum(kind)} at once)"
    elif {before, *kind} == {1} and count > 2:
        text = "one by one"
    else:
        text = _sum([before, *kind * count])
    scattered = any(part[-1] - part[0] >= len(part) for addition in taken for part in addition)
    return text + " interleaved" * scattered, before, rest


def _sum(blocks: list[int]) -> str:
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][0] == block:
            runs[-1][1] += 1
        else:
            runs.append([block, 1])
    return "+".join(f"{times}×{block}" if times > 3 else "+".join([str(block)] * times) for block, times in runs)


def tree_of(product: Product, shape: Shape) -> Tree:
    """Return the tree of a product at a shape, from its first row. Raises TreeError."""
    probe = Probe(product, shape)
    joins: dict[int, list[list[tuple[int, ...]]]] = {}
    # (terms, size of the sum that they join, where their parts are noted)
    waiting: list[tuple[list[int], int, list[tuple[int, ...]]]] = [(list(range(shape.k)), shape.k + 1, [])]
    while waiting:
        sizes = probe.sizes([(terms[0], other) for terms, _, _ in waiting for other in terms[1:]])
        start, following = 0, []
        for terms, joined, noted in waiting:
            own = dict(zip(terms[1:], sizes[start : start + len(terms) - 1], strict=True))
            start += len(own)
            part = [terms[0], *(term for term in terms[1:] if own[term] < joined)]
            noted.append(tuple(part))
            if len(part) < len(terms):
                following.append(([term for term in terms[1:] if own[term] >= joined], joined, noted))
            additions = joins.setdefault(terms[0], [])
            before = 1
            for size in sorted({own[term] for term in part[1:]}):
                others = [term for term in part[1:] if own[term] == size]
                if before + len(others) != size:
                    raise TreeError("the result is not one sum of its terms in a fixed order")
                before = size
                additions.append([])
                following.append((others, size, additions[-1]))
        waiting = following
    return Tree(shape.k, {term: tuple(map(tuple, additions)) for term, additions in joins.items()})


def last_addition(product: Product, shape: Shape) -> int:
    """Return how many terms the last addition adds to the partial sum of term 0. Raises TreeError."""
    sizes = Probe(product, shape).sizes([(0, term) for term in range(1, shape.k)])
    return shape.k - max((size for size in sizes if size < shape.k), default=1)


def chained(product: Product, shape: Shape, blocks: list[int]) -> bool:
    """Return whether K is summed in consecutive blocks of these sizes, each added to all before. Raises TreeError."""
    sizes = [0, *Probe(product, shape).sizes([(0, term) for term in range(1, shape.k)])]
    ends = [sum(blocks[: number + 1]) for number in range(len(blocks))]
    first = all(size <= blocks[0] for size in sizes[: blocks[0]])
    return first and all(set(sizes[start:end]) == {end} for start, end in itertools.pairwise(ends))


class Probe:
    """Answers l(i, j) for many pairs of terms, a call of the product for N of them and each slice of ones."""

    def __init__(self, product: Product, shape: Shape) -> None:
        if shape.dtype not in COUNTABLE:
            raise TreeError(f"{shape.dtype} has too small a range to probe the order of additions")
        self.product, self.shape, self.work = product, shape, 0
        self.x = torch.ones(shape.m, shape.k, dtype=shape.dtype, device=shape.device)

    def sizes(self, pairs: list[tuple[int, int]]) -> list[int]:
        """Return the size of the smallest partial sum that holds both terms, for each pair. Raises TreeError."""
        return [
            size for start in range(0, len(pairs), self.shape.n) for size in self._call(pairs[start:][: self.shape.n])
        ]

    def _call(self, pairs: list[tuple[int, int]]) -> list[int]:
        n, k, dtype, device = self.shape.n, self.shape.k, self.shape.dtype, self.shape.device
        ones, most = COUNTABLE[dtype], MOST_WORK.get(device, 0)
        self.work += self.shape.m * n * k * -(-k // ones)
        if self.work > most:
            raise TreeError(f"probing this product takes more than {most:.0e} multiply-adds on {device}")
        columns, (plus, minus) = torch.arange(len(pairs), device=device), torch.tensor(pairs, device=device).t()
        outside = torch.zeros(n, dtype=torch.float64)
        for start in range(0, k, ones):
            w = torch.zeros(n, k, dtype=dtype, device=device)
            w[:, start : start + ones] = 1
            w[columns, plus], w[columns, minus] = BIG, -BIG
            outside += self.product(self.x, w)[0].double().cpu()
        found = (k - outside[: len(pairs)]).tolist()
        if any(size != int(size) or not 2 <= size <= k for size in found):
            raise TreeError("the result is not one sum of its terms in a fixed order")
        return [int(size) for size in found]
