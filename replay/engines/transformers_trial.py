"""What is seen of one trial: the request's row at every token, and the profiler over the first passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from replay.cublaslt_log import executed
from replay.engines.transformers_facts import dtype_name
from replay.engines.transformers_hooks import Launch, row_sha256, top_logits
from replay.engines.transformers_profile import Profile
from replay.factors import PROFILED_PASSES, Evidence, Setup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replay.case import Case
    from replay.engines.transformers_launch import PaddedBatch
    from replay.engines.transformers_packed import PackedBatch

TOP = 4


class Enough(Exception):  # noqa: N818 - not an error: the run has given what it was started for
    """The rest of the run is not needed."""


class Trial:
    """Listens to one `generate` call, also to passes of the prompt before it; or to the launches of a schedule.

    must_give: as in a Treatment.
    """

    def __init__(
        self, case: Case, batch: PaddedBatch | PackedBatch, setup: Setup, must_give: Sequence[str] = ()
    ) -> None:
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
        self.stopped: int | None = None
        self._must_give = must_give
        self.finished = False
        self._hidden: torch.Tensor | None = None
        self._head = self.model.get_output_embeddings()
        self._watch_head = self._head.register_forward_pre_hook(self._keep_hidden)
        self.profile: Profile | None = Profile(setup)

    def _keep_hidden(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self._hidden = self.batch.hidden(inputs[0]).detach()
        self.evidence.hidden_dtype = dtype_name(inputs[0].dtype)

    def launched(self, launch: Launch) -> None:
        """Keep what was launched."""
        self.evidence.launches.append(launch)

    def chosen(self, tokens: torch.Tensor, done: torch.Tensor) -> None:
        """Take the request's token and logits; the profiler stops after the first passes."""
        launch = self.evidence.launches[-1]
        if self.profile is not None and len(self.evidence.launches) >= PROFILED_PASSES:
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
        self._stop_where_it_fails()

    def _stop_where_it_fails(self) -> None:
        """End the run at logits that it had not to give. The profiled passes run in any case: they are read back."""
        pairs = zip(self.hashes, self._must_give, strict=False)
        if self.profile is None and any(mine != wanted for mine, wanted in pairs):
            self.stopped = len(self.tokens) - 1
            raise Enough

    def _read_tops(self) -> None:
        """Look for the highest logits where the profiler cannot see it: the token rule is read from what it saw."""
        if self.profile is None:
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
        if self.profile is None:
            return
        profile, self.profile = self.profile, None
        profile.stop(self.evidence)
        self._read_tops()

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
