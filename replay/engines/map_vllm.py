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
from typing import TYPE_CHECKING

from replay.case import Asked
from replay.engines.faults import in_words
from replay.engines.vllm_live import Live
from replay.engines.vllm_worker import HASH_LOGITS
from replay.factors import Unpinnable
from replay.plan_map.__main__ import parser, say
from replay.plan_map.cells import PHASES, Cell, MapError, Reading
from replay.plan_map.survey import survey, token_line

if TYPE_CHECKING:
    import argparse

PASSES = 4
"""Decoding passes of one reading: one pass of one row may round to the same bits by luck."""
TARGET = "target"
BAD_INPUT = 3


class Core(Live):
    """A live engine for the target and its neighbours."""

    def __init__(self, options: argparse.Namespace) -> None:
        longest = max(*options.prompt_tokens, options.tokens) + PASSES + 2
        super().__init__({
            "model": str(options.model), "enforce_eager": True, "enable_prefix_caching": False,
            "disable_log_stats": True, "max_model_len": longest, "max_num_seqs": options.rows,
            "max_num_batched_tokens": max(longest, options.rows), "async_scheduling": False,
        }, str(options.model))  # fmt: skip
        self.launches = 0
        self._names = itertools.count()

    @property
    def dtype(self) -> str:
        """Return the dtype of the weights."""
        return str(self.config.model_config.dtype).removeprefix("torch.")

    def queue(self, ids: list[int], tokens: int, name: str | None = None) -> None:
        """Queue a request for the next step, which answers with so many tokens."""
        asked = Asked(name or f"neighbour-{next(self._names)}", 0, len(ids), {"max_tokens": tokens})
        self.admit(asked, ids, by_length=True)

    def step(self) -> tuple[int, int, str | None]:
        """Run one engine step; return rows and tokens of its launch, and the bits of the target's row."""
        self.core.step()
        self.launches += 1
        launch = self.notes.composition(self.notes.last)
        own = [one for one in self.notes.tokens(TARGET) if one["engine_step"] == self.notes.last]
        return len(launch), sum(row[1] for row in launch), own[0]["logits_sha256"] if own else None


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
            self.core.queue(self._ids, PASSES + 1, TARGET)
            if cell.phase == "prefill":
                return self._step(cell, self.prompt)
            alone = self._step(Cell("prefill", 1, self.prompt), self.prompt)
            readings = [alone, *(self._step(cell, 1) for _ in range(PASSES))]
            if failed := next((one for one in readings if one.bits is None), None):
                return failed
            return Reading(hashlib.sha256("".join(str(one.bits) for one in readings[1:]).encode()).hexdigest())
        finally:
            self.core.empty()

    def _step(self, cell: Cell, own: int) -> Reading:
        """Run one step in which the target has `own` tokens and the neighbours, new ones, have the rest."""
        for length in _shares(cell.tokens - own, cell.rows - 1):
            self.core.queue([self._other.randrange(3, self.core.vocabulary) for _ in range(length)], 1)
        rows, tokens, bits = self.core.step()
        if (rows, tokens) != (cell.rows, cell.tokens):
            return Reading(None, f"{cell.rows} rows of {cell.tokens} tokens were asked for, {rows} of {tokens} ran")
        return Reading(bits, None if bits else "the target chose no token in this step")


def _shares(tokens: int, rows: int) -> list[int]:
    """Return how many tokens each neighbour has: as equal as can be."""
    return [tokens // rows + (place < tokens % rows) for place in range(rows)] if rows else []


def main() -> int:
    """Print the map; return 0, or why there is none. What libraries print goes to stderr."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", HASH_LOGITS: "1"}  # the engine core stays in this process
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
    except Unpinnable as fault:
        say(f"error: {options.model}: {fault}")
        return BAD_INPUT
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
