"""What computed the products of a model's layers, step by step, from kernel records: the `algo_id` of a batch.

A record of a product states its shape, and seldom which product of the model it was. The dimensions of the engine tell:
(out, in) features belong to one role or to several (k and v have one shape). If all products of a shape ran one way in
a step, so did each role that has it. A step is spoken for only when that holds for all seven products of a layer: a
trace that holds half a step says nothing of it. The product of the output head is left out: its M is that of the rows
that chose a token.

Records of no step and no time (a log of cuBLASLt) speak for every step of their M, if that shape ran one way in all of
the log.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Any, Final

import polars as pl

Features = tuple[int, int]
Ways = dict[tuple[int, Features], set[str]]
"""By M and (out, in) features: what computed such products."""
SHAPE: Final = re.compile(r"m=(\d+),n=(\d+),k=(\d+)")
IN_A_LAYER: Final = ("q", "k", "v", "o", "gate", "up", "down")
DIMENSIONS: Final = ("hidden_size", "num_heads", "num_kv_heads", "head_size")


def with_tactics(batches: pl.DataFrame, products: pl.DataFrame, engine: dict[str, Any] | None) -> pl.DataFrame:
    """Return batch records with `algo_id` from kernel records, of a run whose recorder states none.

    products: engine_step, name, algo, shape, as sql/products.sql gives them.
    """
    if products.is_empty() or engine is None or batches["algo_id"].null_count() < batches.height:
        return batches
    ways: dict[int | None, Ways] = defaultdict(lambda: defaultdict(set))
    for step, name, algo, shape in products.iter_rows():
        if found := SHAPE.fullmatch(shape):
            m, n, k = map(int, found.groups())
            ways[step][m, (n, k)].add(_way(name, algo))
    roles = _roles({features for of_step in ways.values() for _, features in of_step}, engine)
    untimed = ways.pop(None, {})
    said = []
    for step, padded, tokens in batches.select("engine_step", "padded_tokens", "batch_tokens").iter_rows():
        rows = tokens if padded is None else padded
        ran = {features: ways_of_m for (m, features), ways_of_m in untimed.items() if m == rows}
        own: dict[Features, set[str]] = defaultdict(set)
        for (_, features), ways_of_m in ways.get(step, {}).items():
            own[features] |= ways_of_m
        said.append(_algorithm(ran | own, roles))
    return batches.with_columns(pl.Series("algo_id", said, dtype=pl.String))


def _algorithm(ran: dict[Features, set[str]], roles: dict[Features, set[str]]) -> str | None:
    """Return the way of every role, the roles of one way together; None unless each ran one way."""
    by_role: dict[str, set[str]] = defaultdict(set)
    for features, names in roles.items():
        for role in names:
            by_role[role] |= ran.get(features, set())
    if any(len(by_role[role]) != 1 for role in IN_A_LAYER):
        return None
    by_way: dict[str, list[str]] = defaultdict(list)
    for role in IN_A_LAYER:
        by_way[next(iter(by_role[role]))].append(role)
    return "; ".join(f"{','.join(names)}: {way}" for way, names in by_way.items())


def _way(name: str, algo: str | None) -> str:
    """Return what computed a product, in one word: the tactic where there is one, else the kernel with its settings."""
    said = json.loads(algo or "{}")
    return ",".join([name, *(f"{key}={value}" for key, value in sorted(said.items()))])


def _roles(shapes: set[Features], engine: dict[str, Any]) -> dict[Features, set[str]]:
    """Return the roles that each shape can have, for separate and for fused projections; {} if it cannot be told.

    The width of the MLP is not on record: it is the one that some product takes in and some product gives.
    """
    if any(engine.get(name) is None for name in DIMENSIONS):
        return {}
    hidden, heads, kv_heads, size = (int(engine[name]) for name in DIMENSIONS)
    ranks = int(engine.get("tp_size") or 1)
    inner, kv = heads * size // ranks, max(kv_heads // ranks, 1) * size
    attention = [
        ((inner, hidden), "q"),
        ((kv, hidden), "kv"),
        ((inner + 2 * kv, hidden), "qkv"),
        ((hidden, inner), "o"),
    ]
    widths = {k for n, k in shapes if n == hidden and k != inner and {(k, hidden), (2 * k, hidden)} & shapes}
    if len(widths) != 1:
        return {}
    (width,) = widths
    gated = [((hidden, width), ("down",)), ((width, hidden), ("gate", "up")), ((2 * width, hidden), ("gate", "up"))]
    found: dict[Features, set[str]] = defaultdict(set)
    for features, names in (*attention, *gated):
        found[features] |= set(names)
    return found
