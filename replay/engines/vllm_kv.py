"""The KV pool of one vLLM engine core: how full it is, what its prefix cache took in and gave up, who holds what.

Block pool methods are watched on the one object; vLLM's own KV event queue would need a port and carries token ids.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from replay.engines.vllm_worker import wrap
from replay.host import MIB, FreeMemory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from replay.record import Recorder

BLOCK_MAP = "FORENSICS_RECORD_BLOCK_MAP"
"""Set to 1 to hash the physical block ids of every launch: work that grows with the tokens in the batch."""


class KvPool:
    """Counts since the last engine step, and the state of the pool now. `sizes`: the engine record's KV fields."""

    def __init__(self, scheduler: Any, recorder: Recorder, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self._manager = scheduler.kv_cache_manager
        self._pool = self._manager.block_pool
        self._hash_map = os.environ.get(BLOCK_MAP) == "1"
        self._memory = FreeMemory()
        self._counts: dict[str, int] = {}
        caching = getattr(self._pool, "enable_caching", False)
        if caching and wrap(self._pool, "_maybe_evict_cached_block", after=recorder.guard(self._evicted)):
            self._counts["kv_blocks_evicted"] = 0
        if caching and wrap(self._pool, "cache_full_blocks", after=recorder.guard(self._stored)):
            self._counts["kv_blocks_stored"] = 0

    @property
    def observes(self) -> list[str]:
        """Return the batch fields that are written only here."""
        return [*self._counts, *(["block_map_sha256"] if self._hash_map else [])]

    def _evicted(self, _: Any, was_cached: Any, *__: Any, **___: Any) -> None:
        self._counts["kv_blocks_evicted"] += bool(was_cached)

    def _stored(
        self,
        _: Any,
        __: Any,
        request: Any,
        blocks: Any,
        num_cached_blocks: int,
        num_full_blocks: int,
        *___: Any,
        **____: Any,
    ) -> None:
        self._counts["kv_blocks_stored"] += max(num_full_blocks - num_cached_blocks, 0)

    def taken(self) -> dict[str, int]:
        """Return the counts since the last call, for the step that is being composed."""
        counts, self._counts = self._counts, dict.fromkeys(self._counts, 0)
        return counts

    def state(self) -> dict[str, Any]:
        """Return the batch fields about memory as it is now."""
        free, total = self._pool.get_num_free_blocks(), self.sizes["kv_blocks_total"]
        block_mb, vram = self.sizes["kv_block_bytes"] / MIB, self._memory.device_mb()
        return {
            "kv_blocks_free": free,
            "kv_blocks_total": total,
            "kv_pool_total_mb": round(total * block_mb, 3),
            "vram_free_mb": vram,
            "headroom_mb": round(free * block_mb + (vram or 0.0), 3),
            "headroom_source": "kv_pool" if vram is None else "device+kv_pool",
        }

    def blocks(self, requests: Iterable[str]) -> dict[str, str]:
        """Return the physical blocks of each request, as text; nothing unless asked for."""
        if not self._hash_map:
            return {}
        held = {req_id: self._manager.get_block_ids(req_id) for req_id in requests}
        return {req_id: "|".join(",".join(map(str, group)) for group in groups) for req_id, groups in held.items()}
