"""Where KV blocks of continuous batching come from and go to: prefix cache, forks, host memory, and nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay.engines.transformers_requests import write_arrival

if TYPE_CHECKING:
    from collections.abc import Generator, MutableMapping

    from replay.engines.transformers_batches import Loop


class KvWatcher:
    """Turns what happens to KV blocks into events, and into facts of the steps that follow.

    `loops`: the loop of a cache or of an offloading manager.
    """

    def __init__(self, loops: MutableMapping[Any, Loop]) -> None:
        self.loops = loops

    def match(self, cache: Any, request_id: str, _prompt_ids: Any) -> Generator[None, Any, None]:
        """The prefix cache was asked for the start of a waiting request."""
        tokens = yield
        self.loops[cache].requests[request_id].cached = int(tokens)

    def fork(self, cache: Any, src_state: Any, _ids: Any, _copies: Any) -> Generator[None, Any, None]:
        """A request for several sequences splits before its last prompt token; the children begin with its KV."""
        loop, computed = self.loops[cache], src_state.current_len()
        children = yield
        detail = {"children": list(children), "num_computed_tokens": computed}
        loop.event("fork", src_state.request_id, detail)
        for child in children:
            write_arrival(loop, src_state, child, block_hashes(cache, src_state))
            loop.requests[child].cached = computed

    def offload(self, manager: Any) -> Generator[None, Any, None]:
        """Requests lose their KV blocks: to host memory, or for recomputation under the same id (a soft reset)."""
        loop, scheduler = self.loops[manager], manager.scheduler
        loop.starved |= {state.request_id for state, _ in scheduler.starved_requests}
        active = {
            req_id: (state, _blocks(manager.cache, req_id), state.position_offset)
            for req_id, state in scheduler.active_requests.items()
        }
        yield
        for req_id, (state, blocks, computed) in active.items():
            if req_id in scheduler.active_requests:
                continue
            kept, request = state.is_cpu_offloaded, loop.requests[req_id]
            detail = {
                "kv": "offloaded to host memory" if kept else "freed, to be recomputed",
                "kv_blocks": blocks,
                "num_computed_tokens": computed,
                "num_output_tokens": len(state.generated_tokens),
            }
            loop.event("offload" if kept else "preemption", req_id, detail)
            request.entry |= {"preempted": True} if kept else {"preempted": True, "resumed": True}
            request.running = False
            loop.preempted += 1
            loop.paged = True

    def restore(self, manager: Any, requests_in_batch: list[Any]) -> Generator[None, Any, None]:
        """Scheduled requests get their KV blocks back from host memory."""
        states = [one.state for one in requests_in_batch if one.state.is_cpu_offloaded]
        yield
        for state in states:
            loop = self.loops[manager]
            detail = {
                "kv_blocks": _blocks(manager.cache, state.request_id),
                "num_computed_tokens": state.position_offset,
            }
            loop.event("restore", state.request_id, detail)
            loop.paged = True


def block_hashes(cache: Any, state: Any) -> list[int] | None:
    """Return the engine's hashes of the full blocks of a prompt, where it shares prefixes at all."""
    from transformers.generation.continuous_batching.cache_allocators.cache_allocator import compute_block_hash

    if not cache.use_prefix_sharing:
        return None
    size = next(iter(cache.cache_allocators.values())).tokens_per_page
    found: list[int] = []
    for start in range(0, len(state.initial_tokens) - size + 1, size):
        found.append(compute_block_hash(found[-1] if found else None, state.initial_tokens[start : start + size]))
    return found


def _blocks(cache: Any, req_id: str) -> int:
    return sum(len(allocator.block_table.get(req_id, ())) for allocator in cache.cache_allocators.values())
