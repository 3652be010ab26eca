"""Runs of the same effective request, wherever they ran: their answers, and what is on record of each step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from forensics.timeline import shape_class

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from forensics.searching import Scope
    from forensics.store import Store

Identity = tuple[str, str, str]
Answer = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Twin:
    """One run of a request. answer: (namespace of its tokens, tokens), the hash of them, or None; steps: in order."""

    request: dict[str, Any]
    answer: Answer | None
    steps: list[dict[str, Any]]

    @property
    def identity(self) -> Identity:
        """Return (run_id, replica_id, req_id)."""
        return self.request["run_id"], self.request["replica_id"], self.request["req_id"]

    @property
    def name(self) -> str:
        """Return the id that a reader knows, so that commands take it: run and request."""
        return f"{self.request['run_id']}/{self.request['req_id']}"

    @property
    def load(self) -> tuple[float, float]:
        """Return mean tokens a launch, then arrival: of twins the one with the least is the calmest."""
        tokens = [row["batch_tokens"] for row in self.steps if row["batch_tokens"] is not None]
        mean = sum(tokens) / len(tokens) if tokens else float("inf")
        return mean, self.request["arrival_ts"] or 0.0

    def shapes(self) -> tuple[str, ...]:
        """Return the shape class of every launch."""
        return tuple(shape_class(row) for row in self.steps)


@dataclass(frozen=True)
class Cohort:
    """All runs of one effective request on one model, oldest first."""

    x: str
    twins: tuple[Twin, ...]


def cohorts(store: Store, within: Scope) -> list[Cohort]:
    """Return the cohorts with at least two runs in the scope; a replica is no part of it: twins are on others.

    Unseeded sampling above temperature 0 may answer as it likes, and is left out.
    """
    requests = store.ask("twins", since=within.since, until=within.until, model=within.model).to_dicts()
    if not requests:
        return []
    rows = store.ask("twin_steps").to_dicts()
    steps = {name: list(members) for name, members in groupby(rows, key=_identity)}
    twins = [_twin(request, steps.get(_identity(request), [])) for request in requests if not _sampled(request)]
    grouped = groupby(twins, key=lambda one: (one.request["input_sha256"], one.request["model_identity"]))
    return [Cohort(key[0], tuple(members)) for key, members in ((key, list(group)) for key, group in grouped)]


def answers(twins: Sequence[Twin], place: Callable[[Twin], Hashable]) -> list[list[Twin]]:
    """Return the twins by what they answered, that of the most places first, of equals the calmest run's.

    place: where and when a run was; a loop that asks a thousand times in one place is one voice.
    One that was cut short goes with the answer that it is the beginning of. Twins without an answer are left out.
    """
    groups: dict[Answer, list[Twin]] = {}
    spoken = [one for one in twins if one.answer is not None]
    for one in sorted(spoken, key=lambda one: len(one.answer[1]) if one.answer else 0, reverse=True):
        whole = next((answer for answer in groups if _is_cut(one, answer)), one.answer)
        groups.setdefault(whole or ("", ()), []).append(one)
    return sorted(groups.values(), key=lambda group: (-voices(group, place), min(one.load for one in group)))


def voices(group: Sequence[Twin], place: Callable[[Twin], Hashable]) -> int:
    """Return in how many places an answer was given."""
    return len({place(one) for one in group})


def _is_cut(one: Twin, answer: Answer) -> bool:
    namespace, tokens = one.answer or ("", ())
    stopped = one.request["finish_reason"] == "stop" or one.request["stop_reason"] is not None
    return (
        not stopped and namespace == answer[0] and tokens == answer[1][: len(tokens)] and len(tokens) < len(answer[1])
    )


def _twin(request: dict[str, Any], steps: list[dict[str, Any]]) -> Twin:
    return Twin(request, next(_answers(request, steps), None), steps)


def _answers(request: dict[str, Any], steps: list[dict[str, Any]]) -> Iterator[Answer]:
    """Yield what tells the answer, best first: ids, tags under the name of their key, the hash of the ids."""
    if request["output_token_ids"] is not None:
        yield "ids", tuple(request["output_token_ids"])
    chosen = {row["token_index"]: row for row in steps if row["token_index"] is not None}
    whole = [chosen[at] for at in range(len(chosen)) if at in chosen]
    if chosen and len(whole) == len(chosen):
        if all(row["token_id"] is not None for row in whole):
            yield "ids", tuple(row["token_id"] for row in whole)
        if request["token_tag_key_id"] is not None and all(row["token_tag"] is not None for row in whole):
            yield f"tags under key {request['token_tag_key_id']}", tuple(row["token_tag"] for row in whole)
    if request["output_token_ids_sha256"] is not None:
        yield "hash", (request["output_token_ids_sha256"],)


def _sampled(request: dict[str, Any]) -> bool:
    config = json.loads(request["decode_cfg_applied"] or "{}")
    temperature = config.get("temperature")
    return isinstance(temperature, int | float) and temperature > 0 and config.get("seed") is None


def _identity(row: dict[str, Any]) -> Identity:
    return row["run_id"], row["replica_id"], row["req_id"]
