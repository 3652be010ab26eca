"""The cells of a map as trials of a made-up request, in static batches of transformers. Standard library only.

Every pin is read back as in a proof: a cell whose plan did not take has no bits, and says why.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Any

from replay.case import Arm, Case
from replay.exchange import pin_not_taken
from replay.plan_map.cells import PHASES, ROLES, Cell, Reading
from replay.plan_map.survey import survey, token_line
from replay.trial import Treatment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from replay.case import Plan
    from replay.trial import Run, Trace

    Say = Callable[[str], None]

TOKENS = 5
"""Output tokens of a trial: the first comes from the prompt's pass, the others from decoding passes.

One pass of one row may round to the same bits by luck; several see more of a kernel."""
ALONE: Plan = {"batch.rows": "1"}


class Trials:
    """The target in static batches. Launch tokens are the M of every projection, held by filler rows."""

    forces_roles = True

    def __init__(self, run: Run, prompt: int, vocabulary: int, dtype: str) -> None:
        self.prompt, self._run = prompt, run
        self.case = made_up(prompt, vocabulary, dtype)
        self._first: int | None = None
        self._known: dict[str, Trace] = {}

    def read(self, cell: Cell, repeat: int = 0) -> Reading:
        """Run a cell, or take its phase from a trial that has run: one trial reads both."""
        trace = self._trial(Treatment(self.plan(cell), history=ALONE, switch=1, repeat=repeat))
        if trace.missing or (problem := pin_not_taken(trace)):
            return Reading(None, trace.missing or problem)
        if self._first is None:
            self._first = trace.tokens[0]
        if cell.phase == "prefill":
            return Reading(trace.logits_sha256[0])
        if trace.tokens[0] != self._first:
            return Reading(None, "another token came first: the decoding pass had another input")
        return Reading(hashlib.sha256("".join(trace.logits_sha256[1:]).encode()).hexdigest())

    @property
    def executed(self) -> int:
        """Return how many trials have run."""
        return len(self._known)

    def plan(self, cell: Cell) -> Plan:
        """Return the plan of a cell, in both phases: a launch of M below the prompt is of decoding alone."""
        plan = {"batch.rows": str(cell.rows)}
        if cell.left_pad is not None:
            plan |= {"batch.left_pad": str(cell.left_pad), "batch.mask_path": "explicit"}
        forced = dict.fromkeys(ROLES, cell.tokens) | dict(cell.roles)
        for role, tokens in forced.items():
            if tokens >= self.prompt or role == "lm_head":
                plan[f"gemm.{role}.rows"] = str(tokens)
            if tokens >= (cell.rows if role != "lm_head" else 1):
                plan[f"gemm.{role}.rows.decode"] = str(tokens)
        return plan

    def _trial(self, treatment: Treatment) -> Trace:
        key = treatment.key()
        if key not in self._known:
            self._known[key] = self._run(self.case, treatment)
        return self._known[key]


def made_up(prompt: int, vocabulary: int, dtype: str) -> Case:
    """Return a request of random ids from a fixed seed; its arms hold nothing that a trial could be compared with."""
    draw = random.Random(prompt)  # noqa: S311 - the same prompt on every machine
    ids = tuple(draw.randrange(3, max(vocabulary, 4)) for _ in range(prompt))
    arm = Arm("map", "map", {}, output_token_ids=(0,) * TOKENS)
    engine: dict[str, Any] = {"engine": "transformers", "dtype": dtype}
    return Case("", ids, {"temperature": 0}, "argmax", engine, arm, arm, flip_index=TOKENS - 1)


def chart(run: Run, config: dict[str, Any], lengths: Sequence[int], rows: int, tokens: int, say: Say) -> dict[str, Any]:
    """Return the map of a model with this config.json; of the second and later prompt lengths only the token lines.

    Raises MapError, TrialError.
    """
    text = config.get("text_config") or config
    vocabulary = int(text.get("vocab_size") or 1000)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    probe = Trials(run, lengths[0], vocabulary, dtype)
    found, executed = survey(probe, rows, tokens, say), 0
    for length in lengths[1:]:
        say(f"a prompt of {length} tokens: borders")
        other = Trials(run, length, vocabulary, dtype)
        found.lines += [token_line(other.read, phase, other, tokens) for phase in PHASES]
        executed += other.executed
    return found.document() | {"engine": "transformers", "dtype": dtype, "launches": executed + probe.executed}
