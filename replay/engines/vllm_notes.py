"""The recorder's own hooks reporting into memory: what a trial is read back from."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.case import Composition

Hook = TypeVar("Hook", bound="Callable[..., Any]")
Record = dict[str, Any]


class Notes:
    """Takes the place of a Recorder: keeps records instead of writing them, and lets a fault fail the trial.

    steps: engine step → records of its rows; requests, events: in the order in which they came; last: the last step.
    """

    with_ids = True

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the trial before."""
        self.steps: dict[int, list[Record]] = defaultdict(list)
        self.requests: list[Record] = []
        self.events: list[Record] = []
        self.last = -1

    def write(self, kind: str, **fields: Any) -> None:
        """Keep a record."""
        if kind == "step":
            self.steps[fields["engine_step"]].append(fields)
        elif kind == "batch":
            self.last = fields["engine_step"]
        elif kind in ("request", "event"):
            (self.requests if kind == "request" else self.events).append(fields)

    def composition(self, step: int) -> Composition:
        """Return the rows of an engine step, in the order in which they ran."""
        rows = sorted(self.steps[step], key=lambda one: one["row"])
        return tuple((one["req_id"], one["num_scheduled_tokens"], one["num_computed_tokens"]) for one in rows)

    def tokens(self, req_id: str) -> list[Record]:
        """Return the steps in which a request got a token, by output position."""
        own = (one for rows in self.steps.values() for one in rows if one["req_id"] == req_id and "token_index" in one)
        return sorted(own, key=lambda one: one["token_index"])

    def faults(self) -> list[str]:
        """Return what the worker's hooks could not read."""
        return [str(one["detail"]["fault"]) for one in self.events if one["what"] == "recorder_fault"]

    def guard(self, hook: Hook) -> Hook:
        """Return the hook as it is: here a fault is not passed over."""
        return hook

    def token_tag(self, _index: int, _token: int) -> str:
        """Return no tag: ids are kept."""
        return ""

    def wake(self) -> None:
        """Nothing waits."""

    flush = close = wake
