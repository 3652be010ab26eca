"""A logits processor by which the answer of a stand-in is what a later request goes on from. vLLM loads it by class.

It only ever touches rows of requests that carry forced ids, and the raw logits are read before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

FORCED = "forensics_forced"
"""Member of SamplingParams.extra_args: the ids with which the answer begins."""


class ForcedAnswer(LogitsProcessor):  # type: ignore[misc] # vLLM is not in the environment of the checks
    """Makes the forced id of each row the highest."""

    def __init__(self, _vllm_config: Any, _device: Any, _is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[Sequence[int], Sequence[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """Return that greedy decoding must not skip it."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the rows of the persistent batch."""
        process_dict_updates(self._rows, batch_update, _forced)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Raise the forced id of each row above all others."""
        for row, (forced, output) in self._rows.items():
            if len(output) < len(forced):
                logits[row, forced[len(output)]] = float("inf")
        return logits


def _forced(params: Any, _prompt: Any, output: Sequence[int]) -> tuple[Sequence[int], Sequence[int]] | None:
    forced = (params.extra_args or {}).get(FORCED)
    return (forced, output) if forced else None
