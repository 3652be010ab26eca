"""Logits as a deterministic function of (input, position, arithmetic so far), with differences of rounding size.

Two executions with the same arithmetic at every token so far have equal bits. One other launch among them moves every
later logit by something like a rounding error of the dtype, because the KV that it wrote stays. A token flips only
where the margin is smaller than what moved.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CANDIDATES, VOCABULARY = 4, 32000
THIN, THIN_MARGIN, MEAN_MARGIN, DRIFT = 0.12, 0.3, 2.0, 0.07
"""Share of thin margins; their width, the mean of the others, and the rounding noise of a bf16 GEMM chain (logits)."""
REPEATED = 0.3  # share of positions at which the most likely token was said before


@dataclass(frozen=True)
class Chosen:
    """One chosen token with the highest raw logits, highest first, as bf16 values."""

    token: int
    ids: tuple[int, ...]
    logits: tuple[float, ...]

    @property
    def sha256(self) -> str:
        """Return the hash of the row."""
        return hashlib.sha256(repr((self.ids, self.logits)).encode()).hexdigest()


def bf16(value: float) -> float:
    """Round to the 8 significant bits of bfloat16."""
    if value == 0.0:
        return 0.0
    unit = 2.0 ** (math.floor(math.log2(abs(value))) - 7)
    return round(value / unit) * unit


def decode(
    text: str, weights: str, arithmetic: Sequence[str], decode_cfg: dict[str, float], token_rule: str,
    jumps: Sequence[float], weights_drift: float = 0.0,
) -> list[Chosen]:  # fmt: skip
    """Return the tokens of one request, one a launch that chose one; `arithmetic` and `jumps` are by launch."""
    found: list[Chosen] = []
    history = hashlib.sha256()
    for position, (how, jump) in enumerate(zip(arithmetic, jumps, strict=True)):
        history.update(how.encode())
        said = [one.token for one in found]
        ids, exact = _exact(text, weights, position, said, weights_drift)
        noise = Random(f"{text}/{position}/{history.hexdigest()}")
        values = [bf16(one + noise.gauss(0.0, DRIFT)) for one in exact]
        if jump:
            values[2] = bf16(values[0] + jump)
        found.append(_choose(ids, values, said, decode_cfg, token_rule, position))
    return found


def _exact(text: str, weights: str, position: int, said: list[int], drift: float) -> tuple[list[int], list[float]]:
    draw = Random(f"{text}/{position}/{said}")
    ids = draw.sample(range(2, VOCABULARY), CANDIDATES)
    if said and draw.random() < REPEATED:
        again = draw.choice(said)
        ids = [again, *(one for one in ids[1:] if one != again)]
        ids += draw.sample(range(VOCABULARY, VOCABULARY + 50), CANDIDATES - len(ids))
    thin = draw.random() < THIN
    margin = draw.uniform(0.0, THIN_MARGIN) if thin else THIN_MARGIN + draw.expovariate(1.0 / MEAN_MARGIN)
    top = draw.uniform(18.0, 30.0)
    exact = [top, top - margin]
    for _ in range(CANDIDATES - 2):
        exact.append(exact[-1] - 0.3 - draw.expovariate(1.0))
    if drift:
        other = Random(f"{text}/{position}/{weights}")
        exact = [one + other.gauss(0.0, drift) for one in exact]
    return ids, exact


def _choose(
    ids: list[int], values: list[float], said: list[int], cfg: dict[str, float], token_rule: str, position: int
) -> Chosen:
    order = sorted(range(len(ids)), key=lambda i: (-values[i], ids[i]))
    penalty, least = cfg.get("repetition_penalty", 1.0), cfg.get("min_tokens", 0)
    processed = [value / penalty if one in said else value for one, value in zip(ids, values, strict=True)]
    if position == 0 and least:
        processed[order[0]] = -math.inf  # the end of text was the most likely token, and is not allowed yet
    sign = 1 if token_rule == "argmax_lowest" else -1
    best = min(range(len(ids)), key=lambda i: (-processed[i], sign * ids[i]))
    return Chosen(ids[best], tuple(ids[i] for i in order), tuple(values[i] for i in order))
