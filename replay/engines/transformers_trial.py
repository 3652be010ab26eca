"""What is seen of one trial: the request's row at every token, and the profiler over the first passes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from replay.cublaslt_log import executed
from replay.engines.transformers_facts import dtype_name
from replay.engines.transformers_hooks import Launch, row_sha256, top_logits
from replay.engines.transformers_lt import LtLog
from replay.engines.transformers_profile import LINEAR, PASS, PRODUCTS, linear_calls, num_splits, with_log
from replay.factors import PROFILED_PASSES, Evidence, Setup

if TYPE_CHECKING:
    from replay.case import Case
    from replay.engines.transformers_launch import PaddedBatch
    from replay.engines.transformers_packed import PackedBatch

TOP = 4
SHAPED = {*PRODUCTS, "aten::embedding", "aten::scaled_dot_product_attention"}
"""Operators whose input shapes a factor reads; asking for those of all takes longer than a pass of a small model."""


class Trial:
    """Listens to one `generate` call, also to passes of the prompt before it; or to the launches of a schedule."""

    def __init__(self, case: Case, batch: PaddedBatch | PackedBatch, setup: Setup) -> None:
        self.case, self.batch, self.model = case, batch, setup.model
        self.evidence = Evidence(
            row=batch.row, target=case.token_ids, neighbours=batch.recorded, linear=setup.product,
            device=self.model.device.type, dtype=dtype_name(self.model.dtype),
        )  # fmt: skip
        self.tokens: list[int] = []
        self.hashes: list[str] = []
        self.tops: list[tuple[list[int], list[float]]] = []
        self._untopped: list[torch.Tensor] = []
        self.contrast: float | None = None
        self.finished = False
        self._hidden: torch.Tensor | None = None
        self._scopes = ExitStack()
        self._lt = LtLog(self.evidence.device)
        self._scope(self.model, PASS)
        for role, layer in setup.linear_layers():
            self._scope(layer, f"{LINEAR}.{role or ''}", self._lt)
        self._head = self.model.get_output_embeddings()
        self._watch_head = self._head.register_forward_pre_hook(self._keep_hidden)
        self.profiler: Any = torch.profiler.profile(record_shapes=True)
        self.profiler.start()

    def _scope(self, module: Any, name: str, log: LtLog | None = None) -> None:
        """Name the module's part of the profile, and of the log."""
        open_scopes: list[Any] = []

        def enter(*_: Any) -> None:
            scope = torch.profiler.record_function(name)
            scope.__enter__()
            open_scopes.append(scope)
            log.enter() if log else None

        def leave(*_: Any) -> None:
            log.leave() if log else None
            if open_scopes:
                open_scopes.pop().__exit__(None, None, None)

        self._scopes.callback(module.register_forward_pre_hook(enter).remove)
        self._scopes.callback(module.register_forward_hook(leave, always_call=True).remove)

    def _keep_hidden(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self._hidden = self.batch.hidden(inputs[0]).detach()
        self.evidence.hidden_dtype = dtype_name(inputs[0].dtype)

    def launched(self, launch: Launch) -> None:
        """Keep what was launched."""
        self.evidence.launches.append(launch)

    def chosen(self, tokens: torch.Tensor, done: torch.Tensor) -> None:
        """Take the request's token and logits; the profiler stops after the first passes."""
        launch = self.evidence.launches[-1]
        if self.profiler is not None and len(self.evidence.launches) >= PROFILED_PASSES:
            self.close()
        if self.finished:
            return
        row = launch.logits[self.batch.row]
        self._take_contrast()
        self.tokens.append(int(tokens[self.batch.row]))
        self.hashes.append(row_sha256(row))
        self._untopped.append(row)
        self._read_tops()
        self.finished = bool(done[self.batch.row])

    def _read_tops(self) -> None:
        """Look for the highest logits where the profiler cannot see it: the token rule is read from what it saw."""
        if self.profiler is None:
            self.tops += [top_logits(row, TOP) for row in self._untopped]
            self._untopped.clear()

    def _take_contrast(self) -> None:
        """At the flip, with the tokens before it as on record: float64 h·(w_a − w_b), without the bias's rounding."""
        flip, arms = self.case.flip_index, (self.case.incident.output_token_ids, self.case.reference.output_token_ids)
        if flip is None or len(self.tokens) != flip or self._hidden is None:
            return
        if any(arm is None or len(arm) <= flip or list(arm[:flip]) != self.tokens for arm in arms):
            return
        pair = torch.tensor([arm[flip] for arm in arms if arm is not None], device=self._head.weight.device)
        rows = self._head.weight[pair].double()
        values = rows @ self._hidden.double()
        if (bias := getattr(self._head, "bias", None)) is not None:
            values = values + bias[pair].double()
        self.contrast = float(values[0] - values[1])

    def ended(self) -> None:
        """The loop is over; `close` follows in any case."""

    def close(self) -> None:
        """Stop the profiler and keep its operators."""
        if self.profiler is None:
            return
        profiler, self.profiler = self.profiler, None
        profiler.stop()
        self._lt.close()
        self._read_tops()
        self._scopes.close()
        # What profiler.events() parses from: it takes four times as long, more than a trial of a small model.
        events = profiler.profiler.kineto_results.events()
        device = torch.autograd.DeviceType
        found = [(event.name(), event) for event in events if event.device_type() == device.CPU]
        named = [(name, event.shapes() if name in SHAPED else [], event) for name, event in found]
        self.evidence.operators = [(name, shapes) for name, shapes, _ in named]
        self.evidence.kernels = [event.name() for event in events if event.device_type() == device.CUDA]
        self.evidence.splits = [count for name, event in found for count in num_splits(name, event)]
        calls = linear_calls(
            (name, shapes, event.start_ns(), event.start_ns() + event.duration_ns()) for name, shapes, event in named
        )
        self.evidence.calls = [with_log(call, self._lt.lines(number)) for number, call in enumerate(calls)]

    def end(self) -> None:
        """Leave nothing behind in the model."""
        self.close()
        self._watch_head.remove()

    def details(self) -> dict[str, Any]:
        """Return the launch as it was seen, for the reader of a verdict."""
        first = self.evidence.launches[0]
        attention = sorted({name for name, _ in self.evidence.operators if "scaled_dot_product" in name})
        rows = {call.role: call.products[-1][1] for call in self.evidence.calls if call.number == 0 and call.products}
        logged = [
            (call.role, one.tactic) for call in self.evidence.calls for line in call.lt if (one := executed(line))
        ]
        tactics = {role: sorted({str(tactic) for own, tactic in logged if own == role}) for role, _ in logged if role}
        return {
            "rows": first.rows,
            "width": first.width,
            "mask_path": first.mask_path,
            "neighbours": self.batch.neighbours,
            "attention_operators": attention,
            "gemm_calls": sum(len(call.products) for call in self.evidence.calls),
            "gemm_rows": {role: count for role, count in sorted(rows.items(), key=str) if role},
            "logit_dtype": dtype_name(first.logits.dtype),
        } | ({"gemm_tactics": tactics} if tactics else {})
