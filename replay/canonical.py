"""RFC 8785 (canonical JSON) with the standard library alone: what the contract hashes where a prompt is no text."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

LARGEST_INTEGER = 2**53 - 1


def canonical_json(value: Any) -> str:
    """Return the RFC 8785 text of a JSON value.

    An integer beyond 2**53 - 1 stands as a string of its digits: the RFC has no form for it. Raises ValueError for
    NaN and infinity, TypeError for what is no JSON.
    """
    if value is None or isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return str(value) if abs(value) <= LARGEST_INTEGER else f'"{value}"'
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        members = sorted(value.items(), key=lambda member: member[0].encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{canonical_json(name)}:{canonical_json(item)}" for name, item in members) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(canonical_json, value)) + "]"
    raise TypeError(f"{type(value).__name__} is no JSON value")


def canonical_sha256(value: Any) -> str:
    """Return sha256 (hex) over the UTF-8 bytes of the RFC 8785 text of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def text_sha256(text: str) -> str:
    """Return sha256 (hex) over the UTF-8 bytes of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def raw_prompt_sha256(prompt: Any) -> str:
    """Return the hash of a prompt as the client sent it, so that gateway and engine agree on it.

    Over the UTF-8 bytes of a text, and over the RFC 8785 text of anything else: token ids, chat messages, or
    {messages, tools} where tools are declared. Raises as `canonical_json` does.
    """
    return text_sha256(prompt) if isinstance(prompt, str) else canonical_sha256(prompt)


def _number(value: float) -> str:
    """Write a double as ECMAScript does: the shortest digits that read back, plain between 1e-6 and 1e21."""
    if not math.isfinite(value):
        raise ValueError(f"{value} has no form in JSON")
    if value == 0:
        return "0"
    if 1e-6 <= abs(value) < 1e21:
        return re.sub(r"\.0*$", "", format(Decimal(repr(value)), "f"))
    return re.sub(r"e([+-])0*", r"e\1", repr(value)).replace(".0e", "e")
