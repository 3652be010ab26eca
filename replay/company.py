"""Who else is in an engine, and what else reaches it: the two windows of a case as inputs of one trial.

Standard library. Engine steps are counted from the target's arrival, so that one arm's company can be put around the
request in the other arm's engine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replay.case import Arm, Asked, Case, Composition, Order, Plan, Window

ALONE, NONE = "alone", "none"
REQUESTS, CONTENTS, ADDED = "company.requests", "company.contents", "company.added"


@dataclass(frozen=True)
class Input:
    """What reaches the engine before one step: a request or an order. `place`: its order among those of one step."""

    step: int
    place: float
    asked: Asked | None = None
    order: Order | None = None


@dataclass(frozen=True)
class Company:
    """The inputs of one trial in order, steps counted from the target's arrival, and the target's request id."""

    target: str
    inputs: tuple[Input, ...]

    @property
    def origin(self) -> int:
        """Return the step, 0 or less, before which the first request arrives."""
        return self.requests()[0][0]

    def requests(self) -> tuple[tuple[int, Asked], ...]:
        """Return (step of arrival, request), the target's among them."""
        return tuple((one.step, one.asked) for one in self.inputs if one.asked is not None)


@dataclass(frozen=True)
class Added:
    """Requests that nobody sent: how many, of how many tokens each.

    at: the pass of the target whose launch they share, 0 for the prompt's; None: they come with it and stay.
    """

    rows: int
    tokens: int
    at: int | None = None

    def __str__(self) -> str:
        """Return the value of company.added."""
        return f"{self.rows}x{self.tokens}" + ("" if self.at is None else f"@{self.at}")


def added(text: str) -> Added:
    """Return what a value of company.added, which has been held against the catalogue, stands for."""
    size, _, at = text.partition("@")
    rows, _, tokens = size.partition("x")
    return Added(int(rows), int(tokens), int(at) if at else None)


def windowed(arm: Arm) -> Window:
    """Return the arm's window. Raises ValueError where it has none."""
    if arm.window is None:
        raise ValueError(f"the arm {arm.req_id!r} has no window")
    return arm.window


def subset(arm: str, places: tuple[int, ...]) -> str:
    """Return the value of company.requests that keeps only these of an arm's requests around the target."""
    return f"{arm}/{','.join(map(str, places))}" if places else ALONE


def company(case: Case, requests: str, orders: str) -> Company:
    """Return what a trial takes in. requests: 'alone', an arm, or an arm with the places kept; orders: 'none', an arm.

    Raises ValueError for places that the arm's window does not have.
    """
    name, _, kept = requests.partition("/")
    arm = case.incident if name == ALONE else case.arm(name)
    window = windowed(arm)
    places = set(window.others(arm.req_id))
    if name == ALONE:
        chosen: set[int] = set()
    else:
        chosen = {int(one) for one in kept.split(",")} if kept else places
    if strange := sorted(chosen - places):
        raise ValueError(f"company.requests={requests}: the window has no other request at {strange[0]}")
    members = {arm.req_id} | {window.requests[at].req_id for at in chosen}
    origin = _arrival(arm)
    inputs = [
        Input(one.arrival_step - origin, at, asked=replace(one, token_ids=case.token_ids) if one.req_id == arm.req_id
              else one) for at, one in enumerate(window.requests) if one.req_id in members
    ]  # fmt: skip
    inputs += [
        Input(one.engine_step - origin, one.arrivals - 0.5, order=one)
        for one in window.orders
        if one.what == "abort" and one.detail["req_id"] in members - {arm.req_id}
    ]
    if orders != NONE:
        ordering = case.arm(orders)
        inputs += [
            Input(one.engine_step - _arrival(ordering), one.arrivals - 0.5, order=one)
            for one in windowed(ordering).orders
            if one.what != "abort"
        ]
    return Company(arm.req_id, tuple(sorted(inputs, key=lambda one: (one.step, one.place))))


def recorded(case: Case, plan: Plan, target: str) -> tuple[int, dict[int, Composition]]:
    """Return the recorded step of the target's arrival, and what ran in each step counted from it.

    target: what the trial calls it; each arm had a name of its own for it.
    Only where the plan is an arm's own, but for what the others say; else there is nothing on record to compare with.
    """
    for arm in (case.incident, case.reference):
        same, own = ({name: value for name, value in one.items() if name != CONTENTS} for one in (plan, arm.plan))
        if same == own and arm.window is not None and arm.window.schedule:
            arrival = _arrival(arm)
            return arrival, {step - arrival: _named(rows, arm.req_id, target) for step, rows in arm.window.schedule}
    return 0, {}


def _named(rows: Composition, name: str, target: str) -> Composition:
    return tuple((target if one == name else one, scheduled, computed) for one, scheduled, computed in rows)


def _arrival(arm: Arm) -> int:
    return next(one.arrival_step for one in windowed(arm).requests if one.req_id == arm.req_id)
