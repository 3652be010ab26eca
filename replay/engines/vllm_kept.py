"""Keys and values of one request, taken out of one running engine and put into another's, block by block.

Only blocks of a plain attention cache move: what an engine keeps in another form is refused, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from replay.factors import Unpinnable

if TYPE_CHECKING:
    from replay.engines.vllm_live import Live


@dataclass(frozen=True)
class Kept:
    """What a request has in the engine after `tokens`, its output so far.

    computed: tokens with keys and values; layers: name → its blocks, first dimension a block of `block_size` tokens.
    """

    tokens: tuple[int, ...]
    computed: int
    block_size: int
    layers: dict[str, Any]

    def earlier(self, count: int) -> Kept:
        """Return it as it was after the first `count` tokens: each pass had added one, and changed none before it.

        What the last block holds beyond is not read: each pass writes its own place first.
        """
        computed = self.computed - (len(self.tokens) - count)
        blocks = -(-computed // self.block_size)
        layers = {name: held[:blocks] for name, held in self.layers.items()}
        return replace(self, tokens=self.tokens[:count], computed=computed, layers=layers)


def take(live: Live, req_id: str) -> Kept:
    """Copy a request's keys and values. Raises Unpinnable where they are not in plain blocks."""
    request = live.scheduler.requests[req_id]
    block_size, computed = live.scheduler.block_size, int(request.num_computed_tokens)
    held = {name: cache[ids].clone() for name, cache, ids in _blocks(live, req_id, computed)}
    return Kept(tuple(request.output_token_ids), computed, block_size, held)


def put(live: Live, req_id: str, kept: Kept) -> None:
    """Replace a request's keys and values. Raises Unpinnable where the two runs do not fit together."""
    request = live.scheduler.requests[req_id]
    number = len(kept.tokens)
    if tuple(request.output_token_ids) != kept.tokens:
        raise Unpinnable(f"history: the two runs chose different tokens before pass {number}")
    if int(request.num_computed_tokens) != kept.computed or live.scheduler.block_size != kept.block_size:
        raise Unpinnable(
            f"history: the two runs do not hold the same tokens' keys and values at pass {len(kept.tokens)}"
        )
    places = _blocks(live, req_id, kept.computed)
    if any(live.pool.blocks[one].ref_cnt > 1 for _, _, ids in places for one in ids):
        raise Unpinnable("history: another request reads the same KV blocks at that time")
    fits = {name: (cache[ids].shape, cache.dtype) for name, cache, ids in places}
    if fits != {name: (held.shape, held.dtype) for name, held in kept.layers.items()}:
        raise Unpinnable("history: the two runs' keys and values differ in form or dtype")
    for name, cache, ids in places:
        cache[ids] = kept.layers[name]


def _blocks(live: Live, req_id: str, computed: int) -> list[tuple[str, Any, list[int]]]:
    """Return (layer, its cache, the request's blocks in order) for each layer, up to the computed tokens."""
    import torch

    groups = live.scheduler.kv_cache_config.kv_cache_groups
    size = live.scheduler.block_size
    needed = -(-computed // size)
    layers = live.config.compilation_config.static_forward_context
    found = []
    for group, ids in zip(groups, live.scheduler.kv_cache_manager.get_block_ids(req_id), strict=True):
        for name in group.layer_names:
            cache, mine = layers[name].kv_cache, list(ids[:needed])
            plain = isinstance(cache, torch.Tensor) and len(cache) == live.pool.num_gpu_blocks
            if not plain or group.kv_cache_spec.block_size != size or len(mine) < needed:
                raise Unpinnable(f"history: {name} does not keep its keys and values in plain blocks")
            if live.pool.null_block.block_id in mine:
                raise Unpinnable(f"history: {name} has given up the keys and values of early tokens")
            found.append((name, cache, mine))
    return found
