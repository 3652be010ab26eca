"""Reading one field of a document that nobody vouches for: each reader returns the value or says what is wrong.

Standard library only. A reader raises TypeError or ValueError; `field` turns that into a BadField with the path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class BadField(Exception):  # noqa: N818 - what it is; on the way out each level puts its name before the path
    """A field does not hold what it should."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path, self.what = path, what


_REQUIRED: Any = object()


def field(document: Any, name: str, read: Callable[[Any], Any], default: Any = _REQUIRED) -> Any:
    """Return what `read` makes of a field; an optional one may be absent or null. Raises BadField."""
    value = document.get(name)
    if value is None and (default is not _REQUIRED or name not in document):
        if default is _REQUIRED:
            raise BadField(name, "is missing")
        return default
    try:
        return read(value)
    except BadField as fault:
        raise BadField(f"{name}.{fault.path}", fault.what) from None
    except (TypeError, ValueError, OverflowError, RecursionError) as fault:
        raise BadField(name, f"has the wrong type or value: {fault}") from None


def mapping(value: Any) -> dict[str, Any]:
    """Return an object. Raises TypeError for anything else."""
    if not isinstance(value, dict):
        raise TypeError(f"object expected, found {type(value).__name__}")
    return dict(value)


def text(value: Any) -> str:
    """Return a text. Raises TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"text expected, found {type(value).__name__}")
    return value


def count(value: Any) -> int:
    """Return an integer from 0. Raises TypeError, ValueError for anything else."""
    if type(value) is not int:  # True is an int to isinstance
        raise TypeError(f"integer expected, found {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{value} is negative")
    return value


def each(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a reader of a list whose items `read` reads."""

    def read_all(values: Any) -> tuple[Any, ...]:
        if not isinstance(values, list):
            raise TypeError(f"list expected, found {type(values).__name__}")
        return tuple(read(value) for value in values)

    return read_all


def token_ids(values: Any) -> tuple[int, ...]:
    """Return token ids: integers of 32 unsigned bits. Raises TypeError, ValueError for anything else."""
    ids = each(count)(values)
    if any(value >= 1 << 32 for value in ids):
        raise ValueError("token ids must fit in 32 unsigned bits")
    return ids
