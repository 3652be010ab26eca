"""The records of one `generate` call: a static padded batch.

A forward pass is an engine step, a row of the padded batch is a request.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import torch

from replay.engines.transformers_facts import decode_config, dtype_name, head_size, launch_plan, stop_token_ids
from replay.engines.transformers_hooks import TOP, row_sha256, top_of_rows
from replay.engines.transformers_record import caller_plan, caller_request_ids
from replay.logits import logit_fields
from replay.record import batch_fingerprint, token_ids_sha256

if TYPE_CHECKING:
    from replay.engines.transformers_hooks import Call, Launch, Top
    from replay.engines.transformers_record import Run

OBSERVES = {
    "request": ["effective_token_ids_sha256", "decode_cfg_applied", "token_rule", "output_token_ids_sha256"],
    "batch": ["batch_size", "batch_tokens", "padded_tokens", "batch_fp", "shape", "graph_mode", "step_ms", "paging_on",
              "headroom_mb", "plan"],
    "step": ["row", "token_index", "token_tag", "num_scheduled_tokens", "num_computed_tokens", "top_logits",
             "logit_dtype", "queue_ms", "preempted", "resumed", "plan"],
}  # fmt: skip
"""preempted and resumed never hold: nothing can take a row out of a static batch and bring it back."""


class StaticCall:
    """Writes a request record a row at both ends of the call, and a batch and its steps for each forward pass."""

    def __init__(self, run: Run, call: Call) -> None:
        self.run, self.call = run, call
        rows: int = call.input_ids.shape[0]
        width: int = call.input_ids.shape[1]
        self.width, mask = width, call.padding_mask
        self.real = torch.ones((rows, width), dtype=torch.bool) if mask is None else mask[:, -width:].bool().cpu()
        self.prompts = [ids[row].tolist() for ids, row in zip(call.input_ids.cpu(), self.real, strict=True)]
        self.real_before: list[list[int]] = [[0, *row] for row in self.real.int().cumsum(-1).tolist()]
        self.row_plans = [self._row_plan(row) for row in range(rows)]
        self.known_plan = dict(caller_plan.get())
        named, name = caller_request_ids.get(), secrets.token_hex(4)
        self.req_ids = list(named) if len(named) == rows else [f"{name}-{row}" for row in range(rows)]
        self.outputs: list[list[int]] = [[] for _ in range(rows)]
        self.reasons: list[str | None] = [None] * rows
        self.steps = [0] * rows
        self.pending: tuple[Launch, int] | None = None
        self.rule = "sample" if call.config.do_sample else "argmax"
        self.stops = stop_token_ids(call.criteria)
        self.arrived = now = round(time.time(), 6)
        applied = decode_config(call)
        for req_id, ids in zip(self.req_ids, self.prompts, strict=True):
            run.recorder.write(
                "request",
                req_id=req_id,
                arrival_ts=now,
                admission_ts=now,
                arrival_step=run.next_step,
                effective_token_ids_sha256=token_ids_sha256(ids),
                effective_tokens=len(ids),
                effective_token_ids=ids if run.recorder.with_ids else None,
                decode_cfg_applied=applied,
                token_rule=self.rule,
                prefix_cache_used=call.past_length > 0,
            )

    def launched(self, launch: Launch) -> None:
        """Keep the pass until its tokens are known; a chunk of a prompt chooses none."""
        self._write_pending(None)
        self.pending = (launch, self.run.take_step())

    def chosen(self, tokens: torch.Tensor, done: torch.Tensor) -> None:
        """Write the latest pass with the tokens that it chose, and note which requests it ended."""
        chosen = tokens.tolist()
        self._write_pending(chosen)
        limit = self.call.criteria.max_length
        for row, stopped in enumerate(done.tolist()):
            if stopped and self.reasons[row] is None:
                at_limit = limit is not None and self.call.input_ids.shape[1] + len(self.outputs[row]) >= limit
                self.reasons[row] = "length" if at_limit and chosen[row] not in self.stops else "stop"

    def ended(self) -> None:
        """Write what came out of each request and why it ended."""
        self._write_pending(None)
        recorder = self.run.recorder
        for req_id, ids, reason in zip(self.req_ids, self.outputs, self.reasons, strict=True):
            recorder.write(
                "request",
                req_id=req_id,
                finish_ts=round(time.time(), 6),
                finish_reason=reason or "abort",
                output_token_ids=ids if recorder.with_ids else None,
                output_token_ids_sha256=token_ids_sha256(ids),
                output_tokens=len(ids),
            )

    def _write_pending(self, tokens: list[int] | None) -> None:
        if self.pending is None:
            return
        (launch, step), self.pending = self.pending, None
        running = [row for row in range(launch.rows) if self.reasons[row] is None]
        start, end = launch.cache_length, launch.cache_length + launch.width
        before = {row: self._real_tokens(row, start) for row in running}
        counts = {row: (self._real_tokens(row, end) - computed, computed) for row, computed in before.items()}
        self._write_batch(step, launch, counts)
        tops = top_of_rows(launch.logits, TOP)
        for row in running:
            self._write_step(step, launch, row, counts[row], None if tokens is None else tokens[row], tops[row])

    def _row_plan(self, row: int) -> dict[str, str]:
        """Return the plan factors of one row; a row of padding alone counts as padded to the right."""
        left = int(self.real[row].int().argmax())
        right = self.width - left - len(self.prompts[row])
        plan = {"batch.row": str(row), "batch.left_pad": str(left)}
        return plan | {"batch.right_pad": str(right)} if right else plan

    def _real_tokens(self, row: int, end: int) -> int:
        """Return how many positions before `end` are not padding; all generated ones are real."""
        generated = max(0, end - self.width)
        return self.real_before[row][end - generated] + generated

    def _write_batch(self, step: int, launch: Launch, counts: dict[int, tuple[int, int]]) -> None:
        text = self.call.model.config.get_text_config()
        keys = launch.cache_length + launch.width
        use_cache = self.call.config.use_cache is not False
        self.run.recorder.write(
            "batch",
            engine_step=step,
            ts=round(launch.started, 6),
            batch_size=launch.rows,
            batch_tokens=sum(scheduled for scheduled, _ in counts.values()),
            padded_tokens=launch.rows * launch.width,
            batch_fp=batch_fingerprint((self.req_ids[row], *counts[row]) for row in counts),
            shape=f"q={launch.width},k={keys},h={text.num_attention_heads},d={head_size(text)},tp=1",
            graph_mode="eager",  # a compiled model is not recorded: `transformers_record.install`
            step_ms=round(launch.step_ms, 3),
            paging_on=launch.offloading,
            **self.run.headroom(),
            plan=launch_plan(self.call.model, launch, self.rule, use_cache) | self.known_plan,
        )

    def _write_step(
        self, step: int, launch: Launch, row: int, counts: tuple[int, int], token: int | None, top: Top
    ) -> None:
        (scheduled, computed), (ids, values) = counts, top
        recorder, index = self.run.recorder, len(self.outputs[row])
        tags = {} if token is None else {one: recorder.token_tag(index, one) for one in {token, *ids}}
        recorder.write(
            "step",
            req_id=self.req_ids[row],
            engine_step=step,
            step=self.steps[row],
            row=row,
            ts=round(launch.started, 6),
            num_scheduled_tokens=scheduled,
            num_computed_tokens=computed,
            queue_ms=round((launch.started - self.arrived) * 1e3, 3) if self.steps[row] == 0 else None,
            token_index=None if token is None else index,
            token_tag=None if token is None else tags[token],
            token_id=token if recorder.with_ids else None,
            top_token_tags=None if token is None else [tags[one] for one in ids],
            top_token_ids=ids if recorder.with_ids else None,
            **logit_fields(values),
            logit_dtype=dtype_name(launch.logits.dtype),
            logits_sha256=row_sha256(launch.logits[row]) if recorder.with_logits_sha256 else None,
            plan=self.row_plans[row],
        )
        self.steps[row] += 1
        if token is not None:
            self.outputs[row].append(token)
