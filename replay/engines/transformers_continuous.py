"""The records of transformers' continuous batching: what its scheduler put into each batch, and what came out.

With asynchronous batching a batch is prepared before the previous one is read, so batches wait in a queue here.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from replay.engines.transformers_batches import Batch, Loop, batch_fields, host_io, read_row, write_batch
from replay.engines.transformers_compute import LaunchWatcher, configured_graph_mode
from replay.engines.transformers_facts import compiled_parts
from replay.engines.transformers_kv import KvWatcher, block_hashes
from replay.engines.transformers_requests import write_arrival, write_end

if TYPE_CHECKING:
    from replay.engines.transformers_record import Recorders

OBSERVES = {
    "request": ["arrival_ts", "admission_ts", "effective_token_ids_sha256", "decode_cfg_applied", "token_rule",
                "prefix_cache_used", "output_token_ids_sha256", "finish_reason"],
    "batch": ["batch_size", "batch_tokens", "padded_tokens", "batch_fp", "shape", "graph_mode", "step_ms",
              "queue_depth", "num_starved", "num_preempted", "kv_blocks_free", "paging_on", "headroom_mb", "plan"],
    "step": ["row", "token_index", "token_tag", "num_scheduled_tokens", "num_computed_tokens", "num_cached_tokens",
             "preempted", "resumed", "queue_ms"],
    "event": ["preemption", "offload", "restore", "fork", "abort"],
}  # fmt: skip
Hook = Callable[..., Generator[None, Any, None]]
"""Runs up to its yield before the watched function, and gets the function's result there."""


def install(recorders: Recorders) -> Callable[[], None]:
    """Watch every continuous batch of this process; return the function that stops it."""
    from transformers.generation.continuous_batching import (
        cache,
        continuous_api,
        model_runner,
        offloading_manager,
        scheduler,
    )

    watcher = Watcher(recorders)
    kv, launch = KvWatcher(watcher.loops), LaunchWatcher(watcher.loops, recorders.guard)
    places: list[tuple[Any, str, Hook]] = [
        (continuous_api.ContinuousBatchingManager, "_create_batch_processor", watcher.create),
        (continuous_api.ContinuousBatchProcessor, "prepare_next_batch", watcher.prepare),
        (continuous_api.ContinuousBatchProcessor, "_generation_step", watcher.step),
        (continuous_api.ContinuousBatchProcessor, "update_batch", watcher.update),
        (continuous_api.ContinuousBatchProcessor, "_handle_request_error", watcher.fail),
        (scheduler.Scheduler, "add_waiting_request", watcher.arrive),
        (scheduler.Scheduler, "clear_cancelled_requests", watcher.cancel),
        (cache.PagedAttentionCache, "search_prefix_match", kv.match),
        (cache.PagedAttentionCache, "prepare_fork_request", kv.fork),
        (model_runner.ModelRunner, "compute_batch", launch.compute),
        (offloading_manager.OffloadingManager, "offload_requests", kv.offload),
        (offloading_manager.OffloadingManager, "restore_scheduled_requests", kv.restore),
    ]
    undo = [_around(owner, name, hook, recorders.guard) for owner, name, hook in places]
    return lambda: [stop() for stop in undo].clear()


def _around(owner: Any, name: str, hook: Hook, guard: Callable[..., Any]) -> Callable[[], None]:
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        observation = guard(_begin)(hook, self, *args, **kwargs)
        if observation is None:  # a fault, or a call that the hook does not know
            return original(self, *args, **kwargs)
        try:
            result = original(self, *args, **kwargs)
        except BaseException:
            observation.close()
            raise
        guard(functools.partial(_finish, observation))(result)
        return result

    setattr(owner, name, watched)
    return functools.partial(setattr, owner, name, original)


def _begin(hook: Hook, *args: Any, **kwargs: Any) -> Generator[None, Any, None]:
    observation = hook(*args, **kwargs)
    next(observation, None)
    return observation


def _finish(observation: Generator[None, Any, None], result: Any) -> None:
    try:
        observation.send(result)
    except StopIteration:
        return


class Watcher:
    """Turns calls of the batching loop into records. Loops are found by any of their parts."""

    def __init__(self, recorders: Recorders) -> None:
        self.recorders = recorders
        self.loops: weakref.WeakKeyDictionary[Any, Loop] = weakref.WeakKeyDictionary()

    def create(self, manager: Any) -> Generator[None, Any, None]:
        """A loop begins: a run of its own, because request ids count from zero again. Or it begins anew."""
        processor = yield
        if processor in self.loops:
            self.loops[processor].forget()
            return
        settings = {name: value for name, value in vars(processor.cb_config).items() if _plain(value)}
        run = self.recorders.run(processor, manager.model, {"batching": "continuous", **settings}, OBSERVES)
        loop = Loop(run, manager.generation_config, compiled=compiled_parts(manager.model))
        cache = processor.cache
        run.recorder.write(
            "engine",
            graph_mode=configured_graph_mode(processor.model_runner, compiled=loop.compiled),
            async_scheduling=bool(processor.use_async_batching),
            kv_block_size=processor.cb_config.page_size,
            kv_blocks_total=int(cache.num_blocks),
        )
        for part in (processor, processor.scheduler, cache, processor.model_runner, processor.offloading_manager):
            self.loops[part] = loop

    def arrive(self, scheduler: Any, state: Any) -> Generator[None, Any, None]:
        """A request reaches the scheduler, or comes back to its queue after an eviction."""
        yield
        if state.request_id not in self.loops[scheduler].requests:
            write_arrival(self.loops[scheduler], state, state.request_id, block_hashes(scheduler.cache, state))

    def cancel(self, scheduler: Any) -> Generator[None, Any, None]:
        """The client gave requests up."""
        loop = self.loops[scheduler]
        for state in (yield):
            detail = {"num_output_tokens": len(state.generated_tokens)}
            loop.event("abort", state.request_id, detail)
            write_end(loop, state, "abort")

    def fail(self, processor: Any, _error: Any, state: Any) -> Generator[None, Any, None]:
        """The engine gave a request up."""
        yield
        write_end(self.loops[processor], state, "error")

    def prepare(self, processor: Any) -> Generator[None, Any, None]:
        """The next batch is chosen."""
        if not (yield):
            return
        loop = self.loops[processor]
        rows = [read_row(loop, one) for one in host_io(processor).requests_in_batch]
        fields = batch_fields(loop, processor, rows)
        loop.starved, loop.preempted, loop.paged = set(), 0, False
        loop.batches.append(Batch(loop.run.take_step(), rows, fields))

    def step(self, processor: Any, _model: Any) -> Generator[None, Any, None]:
        """The batch runs: host time from here to the moment its tokens are on the host."""
        started = time.perf_counter()
        yield
        self.loops[processor].batches[-1].fields["step_ms"] = round((time.perf_counter() - started) * 1e3, 3)

    def update(self, processor: Any) -> Generator[None, Any, None]:
        """Tokens of the oldest batch reach their requests."""
        loop = self.loops[processor]
        if not loop.batches:
            yield  # the last update of an asynchronous loop that never had a batch
            return
        batch = loop.batches.popleft()
        before = [len(row.state.generated_tokens) for row in batch.rows]
        yield
        write_batch(loop, batch, before)


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str) or (isinstance(value, tuple | list) and all(map(_plain, value)))
