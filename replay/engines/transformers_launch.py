"""The padded batch around one request, built from a setup: filler or recorded rows, padding, mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from replay.case import CaseError, launch_fault
from replay.engines.transformers_history import CacheSwitch
from replay.factors import Setup, Unpinnable

if TYPE_CHECKING:
    from replay.case import Arm, Case
    from replay.engines.transformers_history import Snapshot

FILLER_SEED = 0
KNOWN_CONFIG = ("temperature", "max_tokens", "stop_token_ids")
"""Parts of a decode configuration that every greedy trial applies."""


@dataclass(frozen=True)
class PaddedBatch:
    """What goes into `generate`, and what the other rows hold.

    recorded: their ids where they are on record; earlier: passes over the start of the prompt that come before.
    """

    input_ids: torch.Tensor
    padding: torch.Tensor
    row: int
    neighbours: str
    recorded: list[tuple[int, ...]] | None
    earlier: int

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Return the request's row of what reaches the output head."""
        return x[self.row, -1]

    def switch(self, number: int, snapshot: Snapshot | None) -> CacheSwitch:
        """Return the pre-hook that copies or replaces the request's cache before pass `number` of `generate`."""
        return CacheSwitch(self.earlier + number, self.padding, self.row, snapshot)


def build(case: Case, setup: Setup) -> PaddedBatch:
    """Return the batch. Raises Unpinnable when the pins contradict each other, CaseError for ids of another model."""
    text = setup.model.config.get_text_config()
    vocabulary, pad_id = text.vocab_size, 0 if text.pad_token_id is None else text.pad_token_id
    if setup.row >= setup.rows:
        raise Unpinnable(f"batch.row={setup.row}: a launch of {setup.rows} rows has no such row")
    width = setup.left_pad + len(case.token_ids) + setup.right_pad
    check_passes(setup, len(case.token_ids))
    if setup.launch_tokens not in (None, total := setup.rows * width):
        raise Unpinnable(f"batch.launch_tokens={setup.launch_tokens}: {setup.rows} rows of {width} make {total}")
    if fault := launch_fault(setup.rows, width):
        raise Unpinnable(f"batch.rows={setup.rows}, batch.left_pad={setup.left_pad}: {fault}")
    recorded = next((rows for arm in (case.incident, case.reference) if (rows := _recorded(arm, setup, width))), None)
    kind = setup.neighbours or ("recorded" if recorded is not None else "random")
    if kind == "recorded" and recorded is not None and setup.neighbours is None and setup.mask_path == "implicit":
        kind = "recorded" if all(len(ids) == width for ids in recorded) else "random"
    if kind == "recorded" and recorded is None:
        raise Unpinnable("batch.neighbours=recorded: no recorded launch of these rows and this width holds all ids")
    generator = torch.Generator().manual_seed(FILLER_SEED)
    if kind == "recorded":
        others = recorded or []
    elif kind == "zeros":
        others = [(0,) * width] * (setup.rows - 1)
    else:
        filler = torch.randint(vocabulary, (setup.rows - 1, width), generator=generator)
        others = [tuple(ids) for ids in filler.tolist()]
    rows = [*others[: setup.row], case.token_ids, *others[setup.row :]]
    _check_vocabulary(case, rows, vocabulary)
    after = [setup.right_pad if index == setup.row else 0 for index in range(setup.rows)]
    padded = list(zip(rows, after, strict=True))
    ids = torch.tensor([[pad_id] * (width - len(row) - end) + list(row) + [pad_id] * end for row, end in padded])
    padding = torch.tensor([[0] * (width - len(row) - end) + [1] * len(row) + [0] * end for row, end in padded])
    if setup.mask_path == "implicit" and not bool(padding.all()):
        raise Unpinnable("batch.mask_path=implicit: a launch with padding needs an explicit mask")
    kind = kind if setup.rows > 1 else "none"
    return PaddedBatch(ids, padding, setup.row, kind, recorded, len(_earlier_passes(setup)))


def check_passes(setup: Setup, prompt: int) -> None:
    """Check what the prompt is cut into. Raises Unpinnable."""
    if not setup.chunks and not setup.cached_prefix:
        return
    name = "prefill.chunks" if setup.chunks else "prefill.cached_prefix"
    if setup.chunks and setup.cached_prefix:
        raise Unpinnable("prefill.chunks and prefill.cached_prefix: together this version cannot tell them apart")
    if setup.left_pad or setup.right_pad or setup.gemm_rows or not setup.use_cache:
        raise Unpinnable(f"{name}: not together with padding, forced GEMM rows or decoding by recomputation")
    if setup.chunks and sum(setup.chunks) != prompt:
        raise Unpinnable(f"{name}: the chunks add up to {sum(setup.chunks)}, the prompt has {prompt} tokens")
    if setup.cached_prefix >= prompt:
        raise Unpinnable(
            f"{name}={setup.cached_prefix}: the prompt has {prompt} tokens, and one must be left to compute"
        )


def prefilled(model: Any, ids: torch.Tensor, padding: torch.Tensor, setup: Setup) -> Any:
    """Run the prompt's passes before the last one; return their cache, None where there is only one pass."""
    lengths = _earlier_passes(setup)
    if not lengths:
        return None
    from transformers import DynamicCache

    cache, start = DynamicCache(config=model.config), 0
    with torch.no_grad():
        for length in lengths:
            end = start + length
            model(input_ids=ids[:, start:end], attention_mask=padding[:, :end], past_key_values=cache, use_cache=True,
                  logits_to_keep=1)  # fmt: skip
            start = end
    return cache


def _earlier_passes(setup: Setup) -> tuple[int, ...]:
    """Return the lengths of the prompt's passes before the last one."""
    return setup.chunks[:-1] if setup.chunks else (setup.cached_prefix,) if setup.cached_prefix else ()


def _check_vocabulary(case: Case, rows: list[tuple[int, ...]], vocabulary: int) -> None:
    for row in rows:
        if row and max(row) >= vocabulary:
            name = "token_ids" if row is case.token_ids else "rows of a neighbour's ids"
            raise CaseError(
                f"{name}: {max(row)} is outside the vocabulary of this model (0 to {vocabulary - 1}); "
                "give the model that the incident ran on with --model DIR"
            )


def _recorded(arm: Arm, setup: Setup, width: int) -> list[tuple[int, ...]] | None:
    """Return the ids of the arm's other rows, if its launch has this composition and all ids are on record."""
    if len(arm.rows) != setup.rows or max(row.tokens for row in arm.rows) != width:
        return None
    if arm.rows[setup.row].req_id != arm.req_id:
        return None
    others = [row.token_ids for index, row in enumerate(arm.rows) if index != setup.row]
    return (
        None if any(ids is None or len(ids) > width for ids in others) else [ids for ids in others if ids is not None]
    )
