"""Run a request through transformers' continuous batching, launch by launch, as a schedule says.

Cache, inputs, masks and forward pass are the engine's own; only its scheduler, which decides who is in a launch, is
replaced by the schedule. Neighbours get random ids, and zeros for the keys and values that they bring along.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from replay.case import MAX_LAUNCH_TOKENS
from replay.engines.transformers_attention import own_attention
from replay.engines.transformers_history import PagedSwitch
from replay.engines.transformers_hooks import Launch
from replay.engines.transformers_launch import FILLER_SEED, KNOWN_CONFIG
from replay.engines.transformers_schedule import OWN, PackedRow, launches, own_row, packed
from replay.factors import Packed, Setup, Unpinnable

if TYPE_CHECKING:
    from replay.case import Case
    from replay.engines.transformers_history import Snapshot
    from replay.engines.transformers_schedule import Launch as Rows
    from replay.engines.transformers_trial import Trial

PAGE = 32
"""Tokens of a page: where keys and values lie decides nothing, they are gathered in order for every launch."""


def is_packed(setup: Setup) -> bool:
    """Return whether the plan asks for launches of continuous batching: a request alone needs them for `paged` only."""
    if setup.attention == "paged" and setup.schedule is None:
        raise Unpinnable("attention.backend=paged: it needs the launches, pin batch.schedule too")
    return setup.schedule is not None and (setup.schedule != "alone" or setup.attention == "paged")


class PackedBatch:
    """The launches of a schedule; `run` executes them.

    row: place of the request among the rows that choose a token in the current launch; token_index: of the token that
    it chooses there, None where it chooses none; computed: its tokens before the current launch.
    """

    def __init__(self, case: Case, setup: Setup) -> None:
        _check(case, setup)
        self.case, self.setup, self.model = case, setup, setup.model
        self.launches = launches(case, setup)
        self.own_attention = setup.attention != "paged"
        self.recorded: list[tuple[int, ...]] | None = None
        self.neighbours = "random" if any(len(rows) > 1 for rows in self.launches) else "none"
        self.row = 0
        self.token_index: int | None = None
        self.computed = 0
        self._rows: Rows = ()
        self._sequence = list(case.token_ids)
        self._states: dict[str, Any] = {}
        self._draw = torch.Generator().manual_seed(FILLER_SEED)
        self._logits = torch.empty(0)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Return the request's row of what reaches the output head."""
        return x[0, self.row]

    def switch(self, number: int, snapshot: Snapshot | None) -> PagedSwitch:
        """Return the pre-hook that copies or replaces the request's cache before its token `number` is chosen."""
        return PagedSwitch(number, self, snapshot)

    def run(self, trial: Trial) -> None:
        """Run the launches until the request has its tokens."""
        evidence = trial.evidence
        arms = {"incident": self.case.incident, "reference": self.case.reference}
        evidence.schedule = self.setup.schedule
        evidence.schedules = {
            name: packed(arm) for name, arm in arms.items() if arm.plan.get("batch.schedule", name) == name
        }
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            processor = self._processor(stack)
            stack.callback(self.model.register_forward_hook(self._keep_logits).remove)
            if self.own_attention:
                stack.enter_context(own_attention(self.model, lambda: self._rows))
            if prefix := self._own_first().computed:
                self._launch(processor, (PackedRow(OWN, prefix, 0, chooses=False),))
            watch = self.model.register_forward_pre_hook(
                lambda _module, _args, kwargs: evidence.packed.append(self._seen(kwargs)), with_kwargs=True
            )
            stack.callback(watch.remove)
            for rows in self.launches:
                started = time.time()
                tokens = self._launch(processor, rows)
                if own := own_row(rows):
                    launch = Launch(len(rows), own.tokens, own.computed, started, logits=self._logits)
                    self._told(trial, own, launch, tokens)
                if trial.finished:
                    break

    def _told(self, trial: Trial, own: PackedRow, launch: Launch, tokens: torch.Tensor) -> None:
        trial.launched(launch)
        if not own.chooses:
            return
        token = int(tokens[self.row])
        self._sequence.append(token)
        stop = token in (self.case.decode_cfg.get("stop_token_ids") or ())
        trial.chosen(tokens, torch.full((len(tokens),), stop))

    def _own_first(self) -> PackedRow:
        return next(own for rows in self.launches if (own := own_row(rows)))

    def _processor(self, stack: ExitStack) -> Any:
        from transformers import ContinuousBatchingConfig, GenerationConfig
        from transformers.generation.continuous_batching import ContinuousBatchingManager

        stack.callback(self.model.set_attn_implementation, self.model.config._attn_implementation)
        reach: dict[str, int] = {}
        for row in (row for rows in self.launches for row in rows):
            reach[row.req_id] = max(reach.get(row.req_id, 0), row.computed + row.tokens)
        widest = max(self._own_first().computed, *(sum(row.tokens for row in rows) for rows in self.launches))
        if (held := sum(reach.values())) > MAX_LAUNCH_TOKENS:
            raise Unpinnable(
                f"batch.schedule={self.setup.schedule}: its requests hold keys and values of {held} tokens, above "
                f"{MAX_LAUNCH_TOKENS}"
            )
        config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=sum(-(-length // PAGE) for length in reach.values()) + 1,
            max_batch_tokens=max(widest, *map(len, self.launches)),
            max_requests_per_batch=max(map(len, self.launches)),
            allow_block_sharing=False,
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=not self.own_attention,
        )
        greedy = GenerationConfig(do_sample=False, max_new_tokens=1, eos_token_id=-1, pad_token_id=0)
        processor = ContinuousBatchingManager(self.model, greedy, config)._create_batch_processor()
        name = f"batch.schedule={self.setup.schedule}"
        if set(processor.cache.cache_allocators) != {"full_attention"}:
            raise Unpinnable(f"{name}: this version replays launches of models with full attention in all layers only")
        if not processor.model_runner.supports_logits_to_keep(self.model):
            raise Unpinnable(f"{name}: this model computes logits of every token of a launch")
        return processor

    def _launch(self, processor: Any, rows: Rows) -> torch.Tensor:
        """Run one launch; return the token of each row that chooses one."""
        from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

        self._rows, own = rows, own_row(rows)
        choosing = [row for row in rows if row.chooses]
        self.row = choosing.index(own) if own in choosing else 0
        self.token_index = len(self._sequence) - len(self.case.token_ids) if own in choosing else None
        self.computed = own.computed if own else 0
        futures = []
        for row in rows:
            state = self._states.setdefault(row.req_id, RequestState(request_id=row.req_id, initial_tokens=[]))
            state.position_offset, state.tokens_to_process = row.computed, self._tokens(row)
            stored = processor.cache.can_store_request_tokens(state, row.tokens)
            assert stored, "the cache is built to hold them all"
            futures.append(FutureRequestState(state, row.chooses, {}, row.tokens))
        inputs = processor.inputs_and_outputs
        inputs.prepare_batch_tensors(
            requests_in_batch=futures,
            logits_processors=processor.logit_processor,
            use_decode_fast_path=False,
            num_q_tokens=sum(row.tokens for row in rows),
            max_kv_read=sum(row.computed for row in rows),
            use_padding=False,
        )
        processor._generation_step(self.model)
        return inputs.output_ids[0, : len(rows)].cpu()

    def _tokens(self, row: PackedRow) -> list[int]:
        if row.req_id == OWN:
            return self._sequence[row.computed : row.computed + row.tokens]
        vocabulary = self.model.config.get_text_config().vocab_size
        drawn: list[int] = torch.randint(vocabulary, (row.tokens,), generator=self._draw).tolist()
        return drawn

    def _keep_logits(self, _module: Any, _args: Any, output: Any) -> None:
        self._logits = output.logits[0].detach().cpu()

    def _seen(self, kwargs: dict[str, Any]) -> Packed:
        """Return the rows of a launch from the lengths and ids that reach the model."""
        ends = kwargs["cu_seq_lens_q"].tolist()
        keys = kwargs["cu_seq_lens_k"]["full_attention"].tolist()
        ids, starts = kwargs["input_ids"][0].tolist(), kwargs["position_ids"][0].tolist()
        rows, own = [], None
        for at, (start, end) in enumerate(pairwise(ends)):
            computed = starts[start]
            if keys[at + 1] - keys[at] != computed + end - start:
                raise RuntimeError(f"row {at} of a launch has positions from {computed} and other keys than these")
            rows.append((end - start, computed))
            if self._rows[at].req_id == OWN and ids[start:end] == self._sequence[computed : computed + end - start]:
                own = at
        return Packed(tuple(rows), own)


def _check(case: Case, setup: Setup) -> None:
    """Raise Unpinnable where the plan or the request ask for what these launches have not."""
    plain = Setup(load=setup.load, model=setup.model)
    beside = {
        "batch.rows": "rows", "batch.row": "row", "batch.left_pad": "left_pad", "batch.right_pad": "right_pad",
        "batch.launch_tokens": "launch_tokens", "batch.mask_path": "mask_path", "batch.neighbours": "neighbours",
        "decode.mode": "use_cache", "token.rule=topk0": "processors", "gemm.<role>.rows": "gemm_rows",
    }  # fmt: skip
    for name, attribute in beside.items():
        if getattr(setup, attribute) != getattr(plain, attribute):
            raise Unpinnable(f"{name}: batch.schedule={setup.schedule} settles the launches, so it cannot be set")
    if setup.attention == "eager":
        raise Unpinnable("attention.backend=eager: within a schedule this version has no eager attention")
    if unknown := sorted(case.decode_cfg.keys() - set(KNOWN_CONFIG)):
        raise Unpinnable(f"the decode configuration holds {', '.join(unknown)}, which cannot be applied here")
