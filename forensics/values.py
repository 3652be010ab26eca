"""Values of a record: strict JSON in, one normal form out, or a reason why not.

Nothing in here knows a field's name or a record kind. One value has one form whatever file it came from, so that
equal records are equal bytes and digests agree.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import rfc8785

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DEPTH: Final = 64
SAFE_INTEGER: Final = 2**53 - 1


class Rejected(Exception):  # noqa: N818 - a judgement of a record, not a fault of ours
    """The record breaks the contract: how. `length` and `sha256` are set where not all of its bytes were kept."""

    def __init__(self, reason: str, length: int | None = None, sha256: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.length = length
        self.sha256 = sha256


@dataclass(frozen=True)
class FieldType:
    """One column type: its name in the docs, in SQL and in Arrow, and the reader that normalises or refuses a value."""

    label: str
    sql: str
    read: Callable[[Any], Any]


def parse(raw: bytes) -> dict[str, Any]:
    """Return the object that a line holds. Strict JSON: UTF-8, no key twice at any depth, no NaN or Infinity."""
    value = parse_any(raw)
    if type(value) is not dict:
        raise Rejected(f"{found(value)} where an object should be")
    return value


def parse_any(raw: bytes) -> Any:
    """Return the value that a strict JSON text holds."""
    try:
        return _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as fault:
        raise Rejected(f"not UTF-8: byte {fault.start}") from None
    except json.JSONDecodeError as fault:
        raise Rejected(f"not JSON: {fault.msg} at character {fault.pos}") from None
    except RecursionError:
        raise Rejected(f"nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:  # an integer of more digits than Python converts
        raise Rejected("an integer beyond 64 bits") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Rejected(f"key {shown(twice)} twice in one object")
    return record


def _constant(name: str) -> Any:
    raise Rejected(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


def shown(value: object) -> str:
    """Return a value as printable ASCII of bounded length, for messages."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


_ENCODER: Final = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def lean(value: Any, depth: int) -> Any:
    """Return a JSON value in one form: null members left out, 1.0 as 1. Refuses what JSON or 64 bits cannot hold."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    kind = type(value)
    if kind is dict:
        return {_text(name): lean(member, depth + 1) for name, member in value.items() if member is not None}
    if kind is list:
        return [lean(member, depth + 1) for member in value]
    if kind is float:
        number = _number(value)
        return int(number) if abs(number) <= SAFE_INTEGER and number.is_integer() else number
    if kind is int:
        return _integer(value)
    if kind is str or kind is bool or value is None:
        return value
    raise TypeError


def canonical(value: Any) -> bytes:
    """Return RFC 8785 bytes, in which an integer beyond 2**53 - 1 stands as a string: the RFC has no form for it."""
    return rfc8785.dumps(_safe(lean(value, 0)))


def _safe(value: Any) -> Any:
    if type(value) is dict:
        return {name: _safe(member) for name, member in value.items()}
    if type(value) is list:
        return [_safe(member) for member in value]
    return str(value) if type(value) is int and abs(value) > SAFE_INTEGER else value


def json_text(value: Any) -> str:
    """Return the one text of a lean JSON value: keys sorted, no spaces."""
    return _ENCODER.encode(value)


def _text(value: Any) -> str:
    if type(value) is str:
        return value
    raise TypeError


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError
    if not -(2**63) <= value < 2**63:
        raise ValueError("an integer beyond 64 bits")
    return value


def _number(value: Any) -> float:
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError("not a finite number")
        return value
    if type(value) is not int:
        raise TypeError
    try:
        number = float(value)
    except OverflowError:
        raise ValueError("an integer beyond 64 bits") from None
    if int(number) != value:
        raise ValueError("an integer that a double cannot hold exactly")
    return number


def _boolean(value: Any) -> bool:
    if type(value) is bool:
        return value
    raise TypeError


def _text_or_integer(value: Any) -> str:
    return value if type(value) is str else str(_integer(value))


def _list_of(read: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    def read_list(value: Any) -> list[Any]:
        if type(value) is not list:
            raise TypeError
        return [read(item) for item in value]

    return read_list


def _map(value: Any) -> dict[str, str]:
    if type(value) is not dict:
        raise TypeError
    return {_text(name): _scalar(value[name]) for name in sorted(value) if value[name] is not None}


def _scalar(value: Any) -> str:
    if type(value) in (list, dict):
        raise TypeError
    if type(value) is str:
        return value
    value = lean(value, 3)
    return str(value) if type(value) is int else canonical(value).decode()


def _json(value: Any) -> str:
    if type(value) is not dict:
        raise TypeError
    return json_text(lean(value, 2))


def _json_array(value: Any) -> str:
    if type(value) is not list or any(type(item) is not dict for item in value):
        raise TypeError
    return json_text(lean(value, 2))


def found(value: object) -> str:
    """Return what a value is, in the words of JSON."""
    return _NAMES.get(type(value), f"a {type(value).__name__}")


_NAMES: Final = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}
TYPES: Final = {
    "string": FieldType("a string", "VARCHAR", _text),
    "integer": FieldType("an integer", "BIGINT", _integer),
    "number": FieldType("a number", "DOUBLE", _number),
    "boolean": FieldType("a boolean", "BOOLEAN", _boolean),
    "string or integer": FieldType("a string or an integer", "VARCHAR", _text_or_integer),
    "array of string": FieldType("an array of strings", "VARCHAR[]", _list_of(_text)),
    "array of integer": FieldType("an array of integers", "BIGINT[]", _list_of(_integer)),
    "array of number": FieldType("an array of numbers", "DOUBLE[]", _list_of(_number)),
    "map": FieldType("an object of scalars", "MAP(VARCHAR, VARCHAR)", _map),
    "json": FieldType("an object", "VARCHAR", _json),
    "json array": FieldType("an array of objects", "VARCHAR", _json_array),
}
