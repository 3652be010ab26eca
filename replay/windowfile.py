"""The document form of a window, checked field by field. Raises what `fields.field` turns into a path and a reason."""

from __future__ import annotations

from typing import Any

from replay.case import MAX_LAUNCH_TOKENS, Asked, Composition, Order, Window
from replay.fields import BadField, count, each, field, mapping, text, token_ids

STARTS = ("engine_start", "idle", "idle_empty_cache")
ORDERS = ("abort", "prefix_cache_reset", "batch_limit_change")


def composition(value: Any) -> tuple[int, Composition]:
    """Return [engine step, rows]; a row is [req_id, tokens scheduled, tokens computed before]."""
    step, rows = value
    return count(step), tuple((text(req), count(scheduled), count(computed)) for req, scheduled, computed in rows)


def window_from(value: Any) -> Window:
    """Return a window: ids that are unique, arrivals in order, steps without a gap."""
    document = mapping(value)
    window = Window(
        first_step=field(document, "first_step", count),
        starts=field(document, "starts", one_of(STARTS)),
        requests=field(document, "requests", each(_asked)),
        orders=field(document, "orders", each(_order), ()),
        schedule=field(document, "schedule", each(composition), ()),
    )
    names = [one.req_id for one in window.requests]
    if len(set(names)) < len(names):
        raise BadField("requests", "holds a req_id twice")
    arrivals = [window.first_step, *(one.arrival_step for one in window.requests)]
    if arrivals != sorted(arrivals):
        raise BadField("requests", "is not in order of arrival_step, from first_step on")
    if [step for step, _ in window.schedule] != [window.first_step + at for at in range(len(window.schedule))]:
        raise BadField("schedule", "does not hold every engine step from first_step on, in order")
    if stranger := next((row[0] for _, rows in window.schedule for row in rows if row[0] not in set(names)), None):
        raise BadField("schedule", f"names {stranger!r}, which is not in requests")
    return window


def one_of(words: tuple[str, ...]) -> Any:
    """Return a reader of one of these words."""

    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"one of {', '.join(words)} expected")
        return str(value)

    return read


def _asked(value: Any) -> Asked:
    document = mapping(value)
    asked = Asked(
        req_id=field(document, "req_id", text),
        arrival_step=field(document, "arrival_step", count),
        tokens=field(document, "tokens", _length),
        decode_cfg=field(document, "decode_cfg", decode_cfg),
        token_ids=field(document, "token_ids", token_ids, None),
        token_ids_sha256=field(document, "token_ids_sha256", text, None),
        block_hashes=field(document, "block_hashes", each(text), ()),
        cache_salt=field(document, "cache_salt", text, None),
        priority=field(document, "priority", _integer, 0),
        arrival_ts=field(document, "arrival_ts", float, 0.0),
        output_tokens=field(document, "output_tokens", count, None),
        finish_reason=field(document, "finish_reason", text, None),
    )
    if asked.token_ids is not None and len(asked.token_ids) != asked.tokens:
        raise BadField("tokens", f"is {asked.tokens}, but there are {len(asked.token_ids)} token_ids")
    return asked


def _order(value: Any) -> Order:
    document = mapping(value)
    what = field(document, "what", one_of(ORDERS))
    detail = field(document, "detail", _abort if what == "abort" else _detail)
    return Order(field(document, "engine_step", count), field(document, "arrivals", count), what, detail)


def _abort(value: Any) -> dict[str, Any]:
    document = mapping(value)
    field(document, "req_id", text)
    return document


def _detail(value: Any) -> dict[str, Any]:
    document = mapping(value)
    field(document, "changed", _changed, {})
    return document


def _changed(value: Any) -> dict[str, Any]:
    document = mapping(value)
    for name in document:
        field(document, name, each(_limit))
    return document


def _limit(value: Any) -> Any:
    return value if value is None or isinstance(value, bool) else count(value)


def decode_cfg(value: Any) -> dict[str, Any]:
    """Return a decode configuration whose members that replay computes with have their types."""
    document = mapping(value)
    if field(document, "max_tokens", count, 1) < 1:
        raise BadField("max_tokens", "must be 1 or more")
    field(document, "temperature", float, None)
    field(document, "stop_token_ids", token_ids, None)
    return document


def _length(value: Any) -> int:
    if not 1 <= count(value) <= MAX_LAUNCH_TOKENS:
        raise ValueError(f"a length from 1 to {MAX_LAUNCH_TOKENS} expected")
    return int(value)


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"integer expected, found {type(value).__name__}")
    return value
