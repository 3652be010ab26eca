"""The digests that requests join by: in words in docs/contract.md, in vectors in schemas/digest-vectors.v1.json."""

from __future__ import annotations

import array
import hashlib
import json
import sys
from typing import TYPE_CHECKING, Any, Final

from forensics.values import Rejected, canonical

if TYPE_CHECKING:
    from collections.abc import Iterable

DERIVED: Final = ("input_sha256", "asked_sha256")
"""Columns of the request table that are computed, not recorded."""
HASHED_IDS: Final = {"effective_token_ids": "effective_token_ids_sha256", "output_token_ids": "output_token_ids_sha256"}


def token_ids_sha256(ids: Iterable[int]) -> str:
    """Return sha256 (hex) over ids as unsigned 32-bit little-endian integers."""
    packed = array.array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return hashlib.sha256(packed.tobytes()).hexdigest()


def x_digest(ids_sha256: str, decode_cfg: dict[str, Any], model_identity: str) -> str:
    """Return the digest of the effective request x: sha256 of RFC 8785 ["forensics.x/1", ids, cfg, model].

    A canonical JSON array delimits its parts, so no two triples share a preimage. Before that the hash of the ids is
    lower-cased, and in the configuration null members are left out and integers beyond 2**53 - 1 become strings of
    their digits (RFC 8785 has no form for them; seeds reach there).
    """
    return _digest("forensics.x/1", ids_sha256.lower(), decode_cfg, model_identity)


def input_sha256(ids_sha256: str, decode_cfg: dict[str, Any]) -> str:
    """Return the digest of x without the model identity: sha256 of RFC 8785 ["forensics.input/1", ids, cfg]."""
    return _digest("forensics.input/1", ids_sha256.lower(), decode_cfg)


def asked_sha256(raw_prompt_sha256: str, decode_cfg: dict[str, Any]) -> str:
    """Return the digest of what was asked: sha256 of RFC 8785 ["forensics.asked/1", raw prompt, requested cfg]."""
    return _digest("forensics.asked/1", raw_prompt_sha256.lower(), decode_cfg)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(canonical(list(parts))).hexdigest()


def derive(row: dict[str, Any]) -> None:
    """Fill in what a request row implies: hashes of recorded ids, and the digests that requests join by."""
    for ids, digest in HASHED_IDS.items():
        if ids not in row:
            continue
        try:
            computed = token_ids_sha256(row[ids])
        except OverflowError:
            raise Rejected(f"{ids}: an id outside of 32 unsigned bits") from None
        if row.setdefault(digest, computed).lower() != computed:
            raise Rejected(f"{digest} is not the hash of {ids}")
    if "effective_token_ids_sha256" in row and "decode_cfg_applied" in row:
        cfg = json.loads(row["decode_cfg_applied"])
        row["input_sha256"] = input_sha256(row["effective_token_ids_sha256"], cfg)
    if "raw_prompt_sha256" in row and "decode_cfg_requested" in row:
        cfg = json.loads(row["decode_cfg_requested"])
        row["asked_sha256"] = asked_sha256(row["raw_prompt_sha256"], cfg)
