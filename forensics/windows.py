"""What of a run must be lived through again to bring back one request: from a point where nothing was carried over.

Engine steps are the clock. What is missing is named with what to record: a window with a hole proves nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import polars as pl

from forensics.completeness import losses, lost
from forensics.errors import INGEST, ForensicsError, not_replayable
from forensics.text import printable
from replay.case import Asked, Composition, Order, Window, section

if TYPE_CHECKING:
    from collections.abc import Iterable

    from forensics.evidence import Evidence
    from forensics.store import Store

ORDERS = ("abort", "prefix_cache_reset", "batch_limit_change")
RECORD_ALL = "record every engine step of the run: no --sample, no --ring, and room for all segments"


def window(store: Store, evidence: Evidence, last_step: int, longest: int | None = None) -> Window:
    """Return the window that ends with engine step `last_step`. Raises ForensicsError (exit 4): what is missing.

    longest: engine steps that the caller has time for; None for any number.
    """
    run_id, replica_id, _ = evidence.identity
    where = {"run_id": run_id, "replica_id": replica_id}
    everybody = store.ask("window_requests", **where).to_dicts()
    if evidence.request["arrival_step"] is None:
        raise _missing(evidence, "arrival_step (before which engine step it arrived)", "record with this recorder")
    if unknown := [one["req_id"] for one in everybody if one["arrival_step"] is None and one["last_step"] is not None]:
        raise _missing(evidence, f"arrival_step of {_named(unknown)} (in the request record)", INGEST)
    came = [one for one in everybody if one["arrival_step"] is not None and one["arrival_step"] <= last_step]
    events = store.ask("events", **where, first=0, last=last_step)
    orders = events.filter(pl.col("what").is_in(ORDERS) & pl.col("engine_step").is_not_null())
    cached = caches_prefixes(evidence.engine)
    first, starts = _start(evidence, came, orders, cached=cached)
    if longest is not None and last_step - first >= longest:
        why = f"since nothing was carried over, {last_step - first + 1} engine steps have gone by"
        raise not_replayable(evidence.name, why, f"only windows of less than {longest} are looked at here")
    if gone := lost(losses(store), run_id, replica_id, first, last_step):
        why = f"its run is not whole: {gone[0].told()}"
        raise not_replayable(evidence.name, why, "find the files that are missing, or record it again")
    inside = [one for one in came if one["arrival_step"] >= first]
    schedule = _schedule(store, evidence, first, last_step)
    known = {one["req_id"] for one in inside}
    if strangers := sorted({row[0] for _, rows in schedule for row in rows} - known):
        raise _missing(evidence, f"the request record of {_named(strangers)}", INGEST)
    if bare := [one["req_id"] for one in inside if not _asked_enough(one)]:
        hint = "record with a recorder that writes effective_tokens and decode_cfg_applied"
        raise _missing(evidence, f"the length or decode configuration of {_named(bare)}", hint)
    return Window(
        first_step=first,
        starts=starts,
        requests=tuple(_asked(one) for one in inside),
        orders=tuple(_orders(orders.filter(pl.col("engine_step") >= first), events, inside)),
        schedule=schedule,
    )


def alone(window: Window, req_id: str) -> Window:
    """Return the same request by itself, in an engine that has just started."""
    (own,) = (one for one in window.requests if one.req_id == req_id)
    return Window(0, "engine_start", (Asked(**vars(own) | {"arrival_step": 0, "output_tokens": None}),))


def caches_prefixes(engine: dict[str, Any] | None) -> bool:
    """Return whether the run's engine keeps the KV of prefixes; an engine record that does not say counts as yes."""
    return bool(section(engine or {}, "cache_config").get("enable_prefix_caching", True))


def _start(evidence: Evidence, came: list[dict[str, Any]], orders: pl.DataFrame, *, cached: bool) -> tuple[int, str]:
    """Return the last engine step at or before the target's arrival before which nothing was carried over, and why."""
    arrived = int(evidence.request["arrival_step"])
    aborted = {_detail(row).get("req_id") or row["req_id"]: row["engine_step"] - 1
               for row in orders.filter(pl.col("what") == "abort").iter_rows(named=True)}  # fmt: skip
    busy_until = -1.0
    idle = [0]
    for step, until in sorted((one["arrival_step"], _until(one, aborted)) for one in came):
        if step > arrived:
            break
        if step > busy_until:
            idle.append(step)
        busy_until = max(busy_until, until)
    if not cached:
        return max(idle), "idle" if max(idle) else "engine_start"
    resets = orders.filter(pl.col("what") == "prefix_cache_reset")
    emptied = {row["engine_step"] for row in resets.iter_rows(named=True) if _detail(row).get("done")}
    known = [step for step in idle if step in emptied]
    return (max(known), "idle_empty_cache") if known else (0, "engine_start")


def _until(request: dict[str, Any], aborted: dict[str, int]) -> float:
    """Return the last engine step in which a request was in the engine; for ever where its end is not on record."""
    if request["finish_reason"] is None:
        return float("inf")
    steps = (request["last_step"], aborted.get(request["req_id"]), request["arrival_step"])
    return float(max(step for step in steps if step is not None))


def _schedule(store: Store, evidence: Evidence, first: int, last: int) -> tuple[tuple[int, Composition], ...]:
    run_id, replica_id, _ = evidence.identity
    span = {"run_id": run_id, "replica_id": replica_id, "first": first, "last": last}
    rows: dict[int, list[tuple[str, int, int]]] = {}
    members = store.ask("members", **span).unique(["engine_step", "req_id"], maintain_order=True)
    columns = ("engine_step", "req_id", "num_scheduled_tokens", "num_computed_tokens")
    for step, name, scheduled, computed in members.select(columns).iter_rows():
        rows.setdefault(step, []).append((name, scheduled or 0, computed or 0))
    sizes = dict(store.ask("batches", **span).select("engine_step", "batch_size").iter_rows())
    holes = [step for step in range(first, last + 1) if len(rows.get(step, ())) != sizes.get(step, -1)]
    if holes:
        shown = f"{holes[0]}" if len(holes) == 1 else f"{holes[0]} and {len(holes) - 1} more"
        raise _missing(evidence, f"who shared engine step {shown} (step and batch records)", RECORD_ALL)
    return tuple((step, tuple(rows[step])) for step in range(first, last + 1))


def _asked_enough(request: dict[str, Any]) -> bool:
    return request["decode_cfg_applied"] is not None and _length(request) is not None


def _length(request: dict[str, Any]) -> int | None:
    ids = request["effective_token_ids"]
    return int(request["effective_tokens"]) if ids is None and request["effective_tokens"] else ids and len(ids)


def _asked(request: dict[str, Any]) -> Asked:
    ids = request["effective_token_ids"]
    return Asked(
        req_id=request["req_id"],
        arrival_step=request["arrival_step"],
        tokens=_length(request) or 0,
        decode_cfg=json.loads(request["decode_cfg_applied"]),
        token_ids=None if ids is None else tuple(ids),
        token_ids_sha256=request["effective_token_ids_sha256"],
        block_hashes=tuple(request["block_hashes"] or ()),
        cache_salt=request["cache_salt_tag"],
        priority=request["priority"] or 0,
        arrival_ts=request["arrival_ts"] or 0.0,
        output_tokens=request["output_tokens"],
        finish_reason=request["finish_reason"],
    )


def _orders(orders: pl.DataFrame, events: pl.DataFrame, inside: list[dict[str, Any]]) -> Iterable[Order]:
    """Yield what came from outside, each after the requests that had been admitted by then."""
    for row in orders.iter_rows(named=True):
        step, ts, detail = row["engine_step"], row["ts"] or 0.0, _detail(row)
        before = sum((one["arrival_step"], one["admission_ts"] or 0.0) <= (step, ts) for one in inside)
        if row["what"] == "prefix_cache_reset" and before == 0:
            continue  # the window begins with an empty cache
        if row["what"] == "abort":
            detail = {"req_id": row["req_id"]}
        elif row["what"] == "prefix_cache_reset" and "reset_running_requests" not in detail:
            # Older recorders do not say. The scheduler preempts only when it composes the step, which comes later.
            earlier = (pl.col("what") == "preemption") & (pl.col("engine_step") == step) & (pl.col("seq") < row["seq"])
            detail |= {"reset_running_requests": not events.filter(earlier).is_empty()}
        if row["what"] != "abort" or any(one["req_id"] == row["req_id"] for one in inside):
            yield Order(step, before, row["what"], detail)


def _detail(row: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(row["detail"] or "{}"))


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(printable(name, 80) for name in names[:3]) + more


def _missing(evidence: Evidence, what: str, hint: str) -> ForensicsError:
    return not_replayable(evidence.name, f"not on record is {what}", hint)
