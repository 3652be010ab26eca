"""What a drill asks an engine for, as its process reads it: phases of requests, and when to stop asking.

Standard library only. `forensics drill` writes the document; replay/engines/drill_*.py serve it: `drive(workload)`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


class WorkloadError(Exception):
    """The engine cannot run this; the message says why and what to do."""


@dataclass(frozen=True)
class Phase:
    """One stretch of the drill. in_flight: requests that a client keeps open; one_at_a_time: the engine runs one row.

    kv_pool: 'ample' or 'small'. requests: (request id, name of the prompt), in the order in which they are asked.
    """

    name: str
    in_flight: int
    kv_pool: str
    one_at_a_time: bool
    requests: tuple[tuple[str, str], ...]

    def weight(self) -> float:
        """Return how long it can take, in requests one after the other."""
        return len(self.requests) / (1 if self.one_at_a_time else self.in_flight)


class Turn:
    """A phase that is being served: what waits to be asked until its time is over, and what was asked."""

    def __init__(self, phase: Phase, until: float, requests: Sequence[tuple[str, str]]) -> None:
        self.phase, self.asked = phase, list[tuple[str, str]]()
        self._until, self._waiting = until, list(requests)

    def take(self, most: int) -> list[tuple[str, str]]:
        """Return up to `most` requests to ask now; none when the time (time.monotonic) is over."""
        if time.monotonic() > self._until:
            self._waiting.clear()
        taken = self._waiting[:most]
        del self._waiting[:most]
        self.asked += taken
        return taken


@dataclass(frozen=True)
class Workload:
    """All phases of one process. prompts: name → text; seconds: for all of them, None without a limit.

    dtype: of the weights, 'auto': as the model's folder says.
    """

    model: str
    engine: str
    dtype: str
    max_tokens: int
    concurrency: int
    seconds: float | None
    prompts: dict[str, str]
    phases: tuple[Phase, ...]

    @classmethod
    def read(cls, path: Path) -> Workload:
        """Read the document that `forensics drill` has just written."""
        document = json.loads(path.read_text(encoding="utf-8"))
        phases = tuple(
            Phase(**one | {"requests": tuple((req_id, prompt) for req_id, prompt in one["requests"])})
            for one in document.pop("phases")
        )
        return cls(**document, phases=phases)

    def turns(self) -> Iterator[Turn]:
        """Yield each phase as a turn, with its share of the time that is left, by how long it can take.

        Where the first phase is the idle one, later ones ask what it asked: without a reference there is no comparison.
        """
        end = None if self.seconds is None else time.monotonic() + self.seconds
        known: set[str] | None = None
        for number, phase in enumerate(self.phases):
            now = time.monotonic()
            share = phase.weight() / (sum(later.weight() for later in self.phases[number:]) or 1.0)
            until = float("inf") if end is None else now + max(0.0, end - now) * share
            requests = [one for one in phase.requests if known is None or one[1] in known]
            say(f"{phase.name}: {len(requests)} requests, {phase.in_flight} in flight")
            turn = Turn(phase, until, requests)
            yield turn
            if number == 0 and phase.in_flight == 1:
                known = {prompt for _, prompt in turn.asked}

    def room(self, phase: Phase, prompts: Mapping[str, Sequence[int]]) -> int:
        """Return the tokens of KV for a phase: all that can be in flight, or half of what usually is, if it is small.

        The longest request always has room.
        """
        needed = sorted((len(ids) + self.max_tokens for ids in prompts.values()), reverse=True)
        if phase.kv_pool == "small":
            return max(needed[0], self.concurrency * needed[len(needed) // 2] // 2)
        return self.concurrency * needed[0]


def in_tokens(workload: Workload, tokenizer: Any, context: int) -> dict[str, list[int]]:
    """Return the prompts in tokens, as chats of one message where the tokenizer has a template for chats.

    context: tokens that the model takes. What leaves no room for the answer is cut, its end kept, and said.
    """
    most = context - workload.max_tokens
    if most < 1:
        raise WorkloadError(f"the model takes {context} tokens in all: lower --max-tokens")
    prompts = {name: _tokens(tokenizer, text) for name, text in workload.prompts.items()}
    if cut := sum(len(ids) > most for ids in prompts.values()):
        say(f"cut to the {most} tokens that the model leaves for them: {cut} prompts")
    return {name: ids[-most:] for name, ids in prompts.items()}


def _tokens(tokenizer: Any, text: str) -> list[int]:
    if getattr(tokenizer, "chat_template", None):
        said = [{"role": "user", "content": text}]
        return list(tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False))
    return list(tokenizer(text)["input_ids"])


def say(line: str) -> None:
    """Write a line of progress to stderr."""
    print(f"drill: {line}", file=sys.stderr, flush=True)
