"""The part of the vLLM recorder that lives beside the scheduler: follows each engine step and writes the records.

One Observer watches one engine core. Its hooks are called around the scheduler's own methods, on the
engine's thread; each is wrapped in the recorder's guard, so none can fail a request. What vLLM
schedules and what it then really ran are two things: rows are numbered by the runner's output.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from replay.engines import vllm_records as records
from replay.engines.vllm_launch import Launch, Tracked, add_chosen, batch_fields, composed, step_state
from replay.engines.vllm_worker import RIDES_ON
from replay.record import token_ids_sha256

if TYPE_CHECKING:
    from replay.engines.vllm_kv import KvPool
    from replay.record import Recorder

HOOKS = (
    "named", "arrived", "arrival_noted", "schedule_begins", "scheduled", "preempting", "update_begins", "updated",
    "freed", "finished_outside", "prefix_cache_reset", "weights_changed", "shutting_down", "gone",
)  # fmt: skip


class Observer:
    """Follows one engine core. `engine_step` is the number of the next forward pass; `limits`: those last seen."""

    def __init__(self, scheduler: Any, recorder: Recorder, pool: KvPool, *, graph_mode: str, threads: int) -> None:
        self.scheduler = scheduler
        self.recorder = recorder
        self.engine_step = 0
        self._graph_mode = graph_mode
        self._pool = pool
        self.limits = records.scheduler_limits(scheduler)
        self._cpu_plan = {"cpu.threads": threads}
        self._tracked: dict[str, Tracked] = {}
        self._external: dict[str, str] = {}
        self._launches: dict[int, Launch] = {}
        self._finished: list[tuple[Any, float]] = []
        self._preempted = 0
        self._updating = False
        for name in HOOKS:
            setattr(self, name, recorder.guard(getattr(self, name)))

    def named(self, request: Any, *_: Any, **__: Any) -> None:
        """The engine core got a request that still carries the client's id; the scheduler will not see that one."""
        if getattr(request, "external_req_id", None):
            self._external[request.request_id] = request.external_req_id

    def arrived(self, *_: Any, **__: Any) -> tuple[float, int]:
        """A request is about to enter the scheduler's queue."""
        return time.time(), time.monotonic_ns()

    def arrival_noted(self, when: tuple[float, int], _: Any, request: Any, *__: Any, **___: Any) -> None:
        """The scheduler took the request: this is x, as the model will see it."""
        if request.request_id in self._tracked:
            return  # another turn of a streaming session: its input is not this request's x
        wall, queued_ns = when
        self._tracked[request.request_id] = Tracked(request, queued_ns)
        # Images and embeddings reach the model beside the ids: there the ids are not x, and no hash claims it.
        ids = None if request.prompt_embeds is not None or request.mm_features else request.prompt_token_ids
        salted = [self.recorder.token_tag(at, int.from_bytes(key)) for at, key in enumerate(request.block_hashes)]
        params, salt = request.sampling_params, request.cache_salt
        self.recorder.write(
            "request",
            req_id=request.request_id,
            external_req_id=self._external.pop(request.request_id, None),
            arrival_ts=round(request.arrival_time, 6),
            admission_ts=round(wall, 6),
            arrival_step=self.engine_step,
            effective_token_ids_sha256=None if ids is None else token_ids_sha256(ids),
            effective_token_ids=list(ids) if ids is not None and self.recorder.with_ids else None,
            effective_tokens=request.num_prompt_tokens,
            context_limit=getattr(self.scheduler, "max_model_len", None),
            decode_cfg_applied=None if params is None else records.decode_config(params, request.lora_request),
            token_rule=None if params is None else records.token_rule(params),
            block_hashes=salted or None,
            cache_salt_tag=self.recorder.token_tag(0, int.from_bytes(salt.encode())) if salt else None,
            priority=request.priority,
        )

    def schedule_begins(self, *_: Any, **__: Any) -> tuple[float, int]:
        """The scheduler starts to compose an engine step, under the limits that it has now."""
        limits, before = records.scheduler_limits(self.scheduler), self.limits
        if limits != before:
            self.limits = limits
            changed = {name: [before.get(name), now] for name, now in limits.items() if before.get(name) != now}
            self._event("batch_limit_change", {"changed": changed})
        return time.time(), time.monotonic_ns()

    def preempting(self, request: Any, *_: Any, **__: Any) -> None:
        """A running request is about to lose its KV. Called before vLLM forgets how much that was."""
        computed = request.num_computed_tokens
        self._preempted += 1
        if tracked := self._tracked.get(request.request_id):
            tracked.preempted = True
            tracked.recompute_until = max(tracked.recompute_until, computed)
        detail = {"num_computed_tokens": computed, "num_output_tokens": request.num_output_tokens}
        self._event("preemption", detail, req_id=request.request_id)

    def scheduled(self, begun: tuple[float, int], output: Any, *_: Any, **__: Any) -> None:
        """The composition of an engine step is fixed; it has not run yet."""
        if not output.total_num_scheduled_tokens:
            return
        batch, step = self._batch_state(), self.engine_step
        self.engine_step += 1  # counts even if what follows fails
        launch, admitted = composed(output, step, begun, batch)
        launch.blocks = self._pool.blocks(output.num_scheduled_tokens)
        recomputes = False
        for req_id, tokens, computed in launch.rows:
            if tracked := self._tracked.get(req_id):
                recomputes |= computed < tracked.recompute_until
                launch.steps[req_id] = step_state(tracked, launch, tokens, computed, admitted=req_id in admitted)
        launch.batch["paging_on"] = recomputes or self._preempted > 0
        self._preempted = 0  # whoever is preempted from here on, in or between schedules, belongs to the next step
        self._launches[id(output)] = launch

    def _batch_state(self) -> dict[str, Any]:
        counts = self._pool.taken()
        if evicted := counts.get("kv_blocks_evicted"):
            self._event("eviction", {"blocks": evicted})
        deferred = getattr(self.scheduler, "deferred_waiting", None)
        state = counts | self._pool.state()
        return state | {
            "queue_depth": self.scheduler.get_request_counts()[1],
            "queue_deferred": None if deferred is None else len(deferred),
            "num_preempted": self._preempted,
        }

    def update_begins(self, output: Any, *_: Any, **__: Any) -> Launch | None:
        """The launch came back; its tokens are not yet in the requests."""
        self._updating = True
        launch = self._launches.pop(id(output), None)
        if launch is not None:
            live = (req_id for req_id in launch.steps if req_id in self._tracked)
            launch.outputs_before = {req_id: self._tracked[req_id].request.num_output_tokens for req_id in live}
        return launch

    def updated(self, launch: Launch | None, _: Any, __: Any, ran: Any, *___: Any, **____: Any) -> None:
        """The tokens are in the requests: write the step as it ran."""
        self._updating = False
        try:
            if launch is not None:
                self._write_launch(launch, ran, getattr(ran, RIDES_ON, {}))
        finally:
            self._write_finished()

    def _write_launch(self, launch: Launch, ran: Any, seen: dict[str, Any]) -> None:
        batch = batch_fields(launch, ran.req_id_to_index, seen, self._graph_mode)
        batch["plan"] |= self._cpu_plan
        self.recorder.write("batch", **batch)
        order, ts, live = ran.req_id_to_index, round(launch.ts, 6), self._tracked
        for req_id, state in launch.steps.items():
            row, before = order.get(req_id), launch.outputs_before.get(req_id)
            if row is not None:
                state["row"] = state["plan"]["batch.row"] = row
            # An aborted request is no longer tracked: what was sampled for it reached nobody.
            if before is not None and req_id in live:
                output = live[req_id].request.output_token_ids
                if len(output) > before:
                    add_chosen(state, self.recorder, before, output[before], row, seen)
            self.recorder.write("step", req_id=req_id, engine_step=launch.engine_step, ts=ts, **state)
        if "fault" in seen:
            self._event("recorder_fault", {"hook": "worker", "fault": seen["fault"]}, engine_step=launch.engine_step)

    def freed(self, _: Any, __: Any, request: Any, *___: Any, **____: Any) -> None:
        """A request ended, by itself or by order; its record follows the step that ended it."""
        self._finished.append((request, time.time()))

    def finished_outside(self, *_: Any, **__: Any) -> None:
        """Requests were ended from outside a step: aborts, disconnects."""
        if not self._updating:
            self._write_finished()

    def _write_finished(self) -> None:
        ended = bool(self._finished)
        while self._finished:
            request, when = self._finished.pop(0)
            tracked = self._tracked.pop(request.request_id, None)
            reason = request.get_finished_reason()
            if str(reason) == "abort":
                self._event("abort", {"num_output_tokens": request.num_output_tokens}, req_id=request.request_id)
            output = list(request.output_token_ids)
            self.recorder.write(
                "request",
                req_id=request.request_id,
                prefix_cache_used=tracked.cached_tokens > 0 if tracked and tracked.steps else None,
                output_tokens=len(output),
                output_token_ids_sha256=token_ids_sha256(output),
                output_token_ids=output if self.recorder.with_ids else None,
                finish_reason=None if reason is None else str(reason),
                stop_reason=records.stop_reason(request) if str(reason) == "stop" else None,
                num_preemptions=getattr(request, "num_preemptions", None),
                finish_ts=round(when, 6),
            )
        if ended:
            self.recorder.wake()  # the client has its answer: a server that is killed now must not lose the record

    def prefix_cache_reset(self, _: Any, done: Any, reset_running_requests: Any = False, *__: Any, **___: Any) -> None:
        """Somebody emptied the prefix cache: a replay must do so before the same step."""
        detail = {"done": bool(done), "reset_running_requests": bool(reset_running_requests)}
        self._event("prefix_cache_reset", detail)

    def weights_changed(self, version: Any, *_: Any, **__: Any) -> None:
        """Somebody put other weights in place and named them."""
        self._event("weights_update", {"weights_version": str(version)})

    def shutting_down(self, *_: Any, **__: Any) -> None:
        """The engine core is about to go: say how much there was, and get it onto the disk before teardown."""
        self._event("shutdown", {"engine_steps": self.engine_step, "unfinished_requests": len(self._tracked)})
        self.recorder.flush()

    def gone(self, *_: Any, **__: Any) -> None:
        """Teardown is over; nothing can follow."""
        self.recorder.close()

    def _event(self, what: str, detail: dict[str, Any], **at: Any) -> None:
        self.recorder.write("event", what=what, detail=detail, **{"engine_step": self.engine_step} | at)
