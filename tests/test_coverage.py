"""Coverage: what is on record, in part or missing, and what the engine record says for all rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from forensics.coverage import coverage, record_first
from forensics.evidence import gather
from forensics.timeline import Thresholds
from tests.story import Story

if TYPE_CHECKING:
    from pathlib import Path


def statuses(folder: Path, engine: dict[str, Any], *, resumed: bool | None = None, **batch: Any) -> dict[str, str]:
    story = Story().engine(**engine)
    story.request("a", (1, 2), step_fields={}, batch_fields=batch)
    for record in story.records:
        if record["kind"] == "step":
            record["resumed"] = resumed
    with story.tell(folder) as store:
        (request,) = store.ask("request", req_id="a").to_dicts()
        fields = coverage(gather(store, request, Thresholds()))
    assert all(field.share == 0 for field in record_first(fields))
    return {f"{field.kind}.{field.name}": field.status for field in fields}


@pytest.mark.parametrize(
    ("observes", "resumed", "status"),
    [
        ({"step": ["resumed"]}, None, "on record"),
        ({"step": ["preempted"]}, None, "missing"),
        ({"request": ["resumed"]}, None, "missing"),
        ({}, True, "on record"),
    ],
)
def test_absent_means_not_resumed_where_it_is_observed(
    tmp_path: Path, observes: dict[str, Any], resumed: bool | None, status: str
) -> None:
    assert statuses(tmp_path, {"observes": observes}, resumed=resumed)["step.resumed"] == status


@pytest.mark.parametrize(
    ("isolation", "batch", "status"),
    [
        ({"shared_batching": True}, {}, "on record"),
        ({"cross_tenant_batching": False}, {}, "on record"),
        ({"mig": "off"}, {}, "missing"),
        (None, {}, "missing"),
        (None, {"isolation_mode": "strict"}, "on record"),
    ],
)
def test_the_engine_states_the_posture(
    tmp_path: Path, isolation: dict[str, Any] | None, batch: dict[str, Any], status: str
) -> None:
    assert statuses(tmp_path, {"isolation": isolation}, **batch)["batch.isolation_mode"] == status
