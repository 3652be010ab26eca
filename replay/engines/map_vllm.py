"""The cells of a map on vLLM: the engine core is stepped by hand, and neighbours are admitted beside the target.

`python -m replay.engines.map_vllm MODEL`, started by `python -m replay.plan_map`: one JSON object on stdout. Rows and
tokens of every launch are read back from what the model runner was given, not from what was asked for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import sys
from typing import TYPE_CHECKING, Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read at import: the engine core stays in this process

from vllm import LLM, SamplingParams
from vllm.v1.request import Request

from replay.engines.faults import in_words
from replay.engines.transformers_hooks import row_sha256
from replay.engines.vllm_worker import wrap
from replay.plan_map.__main__ import parser, say
from replay.plan_map.cells import PHASES, Cell, MapError, Reading
from replay.plan_map.survey import survey, token_line

if TYPE_CHECKING:
    import argparse

PASSES = 4
"""Decoding passes of one reading: one pass of one row may round to the same bits by luck."""
TARGET = "target"
BAD_INPUT = 3


class Core:
    """An engine core in this process. launch: (rows, tokens) of the latest one; bits: of the target's row in it."""

    def __init__(self, options: argparse.Namespace) -> None:
        longest = max(*options.prompt_tokens, options.tokens) + PASSES + 2
        self.llm = LLM(
            str(options.model), enforce_eager=True, enable_prefix_caching=False, disable_log_stats=True,
            max_model_len=longest, max_num_seqs=options.rows, max_num_batched_tokens=max(longest, options.rows),
        )  # fmt: skip
        self._core = self.llm.llm_engine.engine_core.engine_core
        self._runner = self._core.model_executor.driver_worker.worker.model_runner
        self.vocabulary = int(self.llm.model_config.get_vocab_size())
        self.dtype = str(self.llm.model_config.dtype).removeprefix("torch.")
        self.launch: tuple[int, int] = (0, 0)
        self.launches = 0
        self.bits: str | None = None
        if not (
            wrap(self._runner, "execute_model", before=self._launched)
            and wrap(self._runner.model, "compute_logits", after=self._logits)
        ):
            raise MapError("this vLLM's model runner has not the methods that are watched")
        self._names = itertools.count()

    def admit(self, ids: list[int], tokens: int, name: str | None = None) -> str:
        """Queue a request for the next step; return its id."""
        req_id = name or f"neighbour-{next(self._names)}"
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        sampling.update_from_generation_config({}, None)
        self._core.scheduler.add_request(
            Request(request_id=req_id, prompt_token_ids=ids, sampling_params=sampling, pooling_params=None)
        )
        return req_id

    def step(self) -> None:
        """Run one engine step."""
        self.bits = None
        self._core.step()
        self.launches += 1

    def clear(self) -> None:
        """End every request, and let the runner forget them."""
        self._core.abort_requests([TARGET])
        while self._core.scheduler.has_requests():
            self._core.step()

    def _launched(self, scheduled: Any, *_: Any, **__: Any) -> None:
        self.launch = (len(scheduled.num_scheduled_tokens), int(scheduled.total_num_scheduled_tokens))

    def _logits(self, _: Any, logits: Any, *__: Any, **___: Any) -> None:
        row = self._runner.input_batch.req_id_to_index.get(TARGET)
        self.bits = None if row is None or logits is None else row_sha256(logits[row].detach().cpu())


class Neighbours:
    """The target among neighbours of random ids whose prompts fill the launch up to the tokens that are asked for."""

    forces_roles = False

    def __init__(self, core: Core, prompt: int) -> None:
        self.core, self.prompt = core, prompt
        draw = random.Random(prompt)  # noqa: S311 - the same prompt on every machine
        self._ids = [draw.randrange(3, core.vocabulary) for _ in range(prompt)]
        self._other = draw

    def read(self, cell: Cell, repeat: int = 0) -> Reading:
        """Run a cell: the prompt's step, or a few decoding steps after a prompt's step alone. Every reading runs."""
        try:
            self.core.admit(self._ids, PASSES + 1, TARGET)
            if cell.phase == "prefill":
                return self._step(cell, self.prompt)
            alone = self._step(Cell("prefill", 1, self.prompt), self.prompt)
            readings = [alone, *(self._step(cell, 1) for _ in range(PASSES))]
            if failed := next((one for one in readings if one.bits is None), None):
                return failed
            return Reading(hashlib.sha256("".join(str(one.bits) for one in readings[1:]).encode()).hexdigest())
        finally:
            self.core.clear()

    def _step(self, cell: Cell, own: int) -> Reading:
        """Run one step in which the target has `own` tokens and the neighbours, new ones, have the rest."""
        for length in _shares(cell.tokens - own, cell.rows - 1):
            self.core.admit([self._other.randrange(3, self.core.vocabulary) for _ in range(length)], 1)
        self.core.step()
        if self.core.launch != (cell.rows, cell.tokens):
            rows, tokens = self.core.launch
            return Reading(None, f"{cell.rows} rows of {cell.tokens} tokens were asked for, {rows} of {tokens} ran")
        return Reading(self.core.bits, None if self.core.bits else "the target chose no token in this step")


def _shares(tokens: int, rows: int) -> list[int]:
    """Return how many tokens each neighbour has: as equal as can be."""
    return [tokens // rows + (place < tokens % rows) for place in range(rows)] if rows else []


def main() -> int:
    """Print the map; return 0, or why there is none. What libraries print goes to stderr."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    options = parser().parse_args()
    try:
        core = Core(options)
        first, *others = options.prompt_tokens
        found = survey(Neighbours(core, first), options.rows, options.tokens, say)
        for length in others:
            say(f"a prompt of {length} tokens: borders")
            other = Neighbours(core, length)
            found.lines += [token_line(other.read, phase, other, options.tokens) for phase in PHASES]
    except MapError as fault:
        say(f"error: {fault}")
        return fault.exit_code
    except (OSError, ValueError, RuntimeError) as fault:
        say(f"error: vLLM cannot run {options.model}: {in_words(fault)}")
        return BAD_INPUT
    except KeyboardInterrupt:
        return 130
    with answer:
        json.dump(found.document() | {"engine": "vllm", "dtype": core.dtype, "launches": core.launches}, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
