"""The records of transformers' continuous batching: what its scheduler put into each batch, and what came out.

With asynchronous batching a batch is prepared before the previous one is read, so batches wait in a queue here.
Logits are read in eager mode only: a captured or compiled sampler would run our code once, not once a step.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import torch

from replay.engines.transformers_batches import Batch, Loop, Row, write_batch
from replay.engines.transformers_facts import SAMPLING, dtype_name
from replay.engines.transformers_hooks import row_sha256, top_logits
from replay.host import MIB
from replay.record import batch_fingerprint, token_ids_sha256

if TYPE_CHECKING:
    from replay.engines.transformers_record import Recorders

OBSERVES = {
    "request": ["effective_token_ids_sha256", "decode_cfg_applied", "token_rule", "output_token_ids_sha256"],
    "batch": [
        "batch_size",
        "batch_tokens",
        "batch_fp",
        "graph_mode",
        "step_ms",
        "kv_blocks_free",
        "paging_on",
        "headroom_mb",
        "plan",
    ],
    "step": ["row", "token_index", "token_tag", "num_scheduled_tokens", "num_computed_tokens", "resumed", "queue_ms"],
    "event": ["preemption"],
}
TOP = 2
Hook = Callable[..., Generator[None, Any, None]]
"""Runs up to its yield before the watched function, and gets the function's result there."""


def install(recorders: Recorders) -> Callable[[], None]:
    """Watch every continuous batch of this process; return the function that stops it."""
    from transformers.generation.continuous_batching import continuous_api, model_runner, offloading_manager, scheduler

    watcher = Watcher(recorders)
    places: list[tuple[Any, str, Hook]] = [
        (continuous_api.ContinuousBatchingManager, "_create_batch_processor", watcher.create),
        (continuous_api.ContinuousBatchProcessor, "prepare_next_batch", watcher.prepare),
        (continuous_api.ContinuousBatchProcessor, "_generation_step", watcher.step),
        (continuous_api.ContinuousBatchProcessor, "update_batch", watcher.update),
        (scheduler.Scheduler, "add_waiting_request", watcher.arrive),
        (model_runner.ModelRunner, "_sample", watcher.sample),
        (offloading_manager.OffloadingManager, "offload_requests", watcher.offload),
    ]
    undo = [_around(owner, name, hook, recorders.guard) for owner, name, hook in places]
    return lambda: [stop() for stop in undo].clear()


def _around(owner: Any, name: str, hook: Hook, guard: Callable[..., Any]) -> Callable[[], None]:
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        observation = hook(self, *args, **kwargs)
        guard(functools.partial(next, observation, None))()
        try:
            result = original(self, *args, **kwargs)
        except BaseException:
            observation.close()
            raise
        guard(functools.partial(_finish, observation))(result)
        return result

    setattr(owner, name, watched)
    return functools.partial(setattr, owner, name, original)


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
        """A loop begins: a run of its own, because request ids count from zero again."""
        processor = yield
        if processor in self.loops:
            return
        settings = {name: value for name, value in vars(processor.cb_config).items() if _plain(value)}
        run = self.recorders.run(processor, manager.model, {"batching": "continuous", **settings}, OBSERVES)
        cache, loop = processor.cache, Loop(run, manager.generation_config)
        run.recorder.write("engine", kv_block_size=processor.cb_config.page_size, kv_blocks_total=int(cache.num_blocks))
        for part in (processor, processor.scheduler, processor.model_runner, processor.offloading_manager):
            self.loops[part] = loop

    def arrive(self, scheduler: Any, state: Any) -> Generator[None, Any, None]:
        """A request reaches the scheduler, or comes back to its queue after an eviction."""
        yield
        loop = self.loops[scheduler]
        if state.request_id in loop.steps:
            return
        loop.steps[state.request_id] = 0
        sampled, recorder = bool(loop.config.do_sample), loop.run.recorder
        applied = {"temperature": 0, "max_tokens": state.max_new_tokens, "stop_token_ids": sorted(state._eos_token_ids)}
        if sampled:
            applied |= {name: getattr(loop.config, name, None) for name in SAMPLING}
        recorder.write(
            "request",
            req_id=state.request_id,
            arrival_ts=round(time.time() - (time.perf_counter() - state.created_time), 6),
            arrival_step=loop.run.next_step,
            effective_token_ids_sha256=token_ids_sha256(state.initial_tokens),
            effective_tokens=len(state.initial_tokens),
            effective_token_ids=list(state.initial_tokens) if recorder.with_ids else None,
            decode_cfg_applied={name: value for name, value in applied.items() if value not in (None, [])},
            token_rule="sample" if sampled else "argmax",
        )

    def offload(self, manager: Any) -> Generator[None, Any, None]:
        """Requests lose their KV blocks: to host memory, or for recomputation (a soft reset)."""
        active = dict(manager.scheduler.active_requests)
        yield
        loop = self.loops[manager]
        for req_id in active.keys() - manager.scheduler.active_requests.keys():
            kept = active[req_id].is_cpu_offloaded
            detail = {"kv": "offloaded to host memory" if kept else "freed, to be recomputed"}
            loop.run.recorder.write(
                "event", what="preemption", req_id=req_id, engine_step=loop.run.next_step, detail=detail
            )
            loop.evicted.add(req_id)
            loop.paged = True

    def prepare(self, processor: Any) -> Generator[None, Any, None]:
        """The next batch is chosen. Its states already count the tokens that it will compute."""
        if not (yield):
            return
        loop, io = self.loops[processor], processor.inputs_and_outputs
        io = io.io_pairs[io.current_pair].host_io if hasattr(io, "io_pairs") else io
        rows = [
            Row(one.state, one.query_length, one.state.position_offset - one.query_length, bool(one.has_new_token))
            for one in io.requests_in_batch
        ]
        resumed = {row.state.request_id for row in rows} & loop.evicted
        loop.evicted -= resumed
        total, tokens = int(processor.cache.num_blocks), sum(row.scheduled for row in rows)
        graphs, free = processor.model_runner.pad_inputs, processor.cache.compute_free_capacity()
        pool_mb = processor.cache.num_sectors * processor.cache.bytes_per_sector / MIB
        fields = {
            "ts": round(time.time(), 6),
            "batch_size": len(rows),
            "batch_tokens": tokens,
            "padded_tokens": int(io.num_q_tokens),
            "batch_fp": batch_fingerprint((row.state.request_id, row.scheduled, row.computed) for row in rows),
            "graph_mode": "compiled or captured" if graphs else "eager",
            "queue_depth": len(processor.scheduler.waiting_requests),
            "kv_blocks_total": total,
            "kv_blocks_free": round(free * total),
            "kv_pool_total_mb": round(pool_mb, 3),
            "headroom_mb": round(free * pool_mb, 3),
            "headroom_source": "kv_pool",
            "paging_on": loop.paged or bool(resumed),
            "plan": {
                "batch.rows": str(len(rows)),
                "batch.launch_tokens": str(tokens),
                "attention.backend": "paged",
                "dtype.weights": dtype_name(processor.model_dtype),
                "cpu.threads": str(torch.get_num_threads()),
                "token.rule": "sample" if processor.do_sample else "argmax",
            },
        }
        loop.paged = False
        loop.batches.append(Batch(loop.run.take_step(), rows, fields, resumed))

    def step(self, processor: Any, _model: Any) -> Generator[None, Any, None]:
        """The batch runs: host time from here to the moment its tokens are on the host."""
        started = time.perf_counter()
        yield
        self.loops[processor].batches[-1].fields["step_ms"] = round((time.perf_counter() - started) * 1e3, 3)

    def sample(self, runner: Any, scores: torch.Tensor, _output_ids: Any) -> Generator[None, Any, None]:
        """Read raw logits, where the sampler runs eagerly and no processor has changed them."""
        if not runner.pad_inputs and not runner.logit_processor.do_processing and runner in self.loops:
            dtype = runner.cache.dtype
            raw = scores[0].detach().to(dtype).cpu()  # the engine's own cast to float32 is exact, so this undoes it
            self.loops[runner].batches[-1].logits = [_logit_fields(row) for row in raw]
        yield

    def update(self, processor: Any) -> Generator[None, Any, None]:
        """Tokens of the oldest batch reach their requests."""
        loop = self.loops[processor]
        batch = loop.batches.popleft()
        before = [len(row.state.generated_tokens) for row in batch.rows]
        yield
        write_batch(loop, batch, before)


def _logit_fields(row: torch.Tensor) -> dict[str, Any]:
    ids, values = top_logits(row, TOP)
    return {"ids": ids, "top_logits": values, "logits_sha256": row_sha256(row), "logit_dtype": dtype_name(row.dtype)}


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)
