"""Two records of one identity: where they contradict, and what they say together."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from forensics.contract import ENVELOPE, content_hash
from forensics.digest import derive
from forensics.values import json_text, shown

if TYPE_CHECKING:
    from forensics.contract import Kind, Row


def differing(kind: Kind, first: Row, row: Row) -> list[str]:
    """Return the fields in which a row is not the same as the first; never empty."""
    names = [name for name in (*kind.fields, "extra") if first.get(name) != row.get(name)]
    return names or ["form of a number"]  # -0.0 equals 0.0, and is not the same bits


def clashing(kind: Kind, first: Row, part: Row) -> list[str]:
    """Return the fields in which two partial records contradict. How a line was written is not what it says."""
    names = [name for name in part if name in kind.fields and name in first and name not in ENVELOPE]
    a, b = _extra(first), _extra(part)
    unknown = [shown(name)[1:-1] for name in a if name in b and a[name] != b[name]]
    return [name for name in names if first[name] != part[name]] + unknown


def merged(kind: Kind, first: Row, part: Row) -> Row:
    """Return what two partial records say together; equal to the first where the part adds nothing.

    The origin stays that of the first, and so does the envelope, unless the first has none at all: the sequence
    number of one writer beside the name of another would be a lie.
    """
    silent = all(name not in first for name in ENVELOPE)
    added = {name: part[name] for name in kind.fields if name in part and (silent or name not in ENVELOPE)}
    whole = added | first
    extra = _extra(part) | _extra(first)
    if extra:
        whole["extra"] = json_text(extra)
    if whole == first:
        return first
    whole["content_hash"] = content_hash(
        kind.name, {name: whole[name] for name in (*kind.fields, "extra") if name in whole}
    )
    if kind.name == "request":
        derive(whole)
    return whole


def _extra(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(row.get("extra", "{}"))
    return found
