"""How two token sequences differ, in words that a reader can check: what was removed or inserted, and where."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

CLOSE_LOOK = 1024
"""Tokens of the differing middle, in either sequence, that are matched one by one; a longer middle is one edit."""
SHOWN = 4


class Edit(NamedTuple):
    """`removed` tokens of the reference from position `at` of the reference on, `inserted` tokens in their place."""

    at: int
    removed: int
    inserted: int


@dataclass(frozen=True)
class TokenDifference:
    """What makes the target's sequence out of the reference's.

    lengths: of target and reference. prefix, suffix: tokens in common at the beginning, and of the rest at the end; so
    `prefix` is the first position that differs.
    """

    lengths: tuple[int, int]
    prefix: int
    suffix: int
    edits: tuple[Edit, ...]

    def says(self) -> str:
        """Return the edits in words, the first few of them."""
        said = [self._edit(edit) for edit in self.edits[:SHOWN]]
        more = len(self.edits) - len(said)
        return "; ".join(said) + (f"; and {more} more places" if more else "")

    def _edit(self, edit: Edit) -> str:
        if edit.removed and edit.inserted:
            return f"{edit.removed} tokens at position {edit.at} replaced by {edit.inserted} others"
        what = f"{edit.removed} tokens removed" if edit.removed else f"{edit.inserted} tokens inserted"
        if edit.at == 0:
            return f"{what} {'from' if edit.removed else 'at'} the front"
        if edit.at + edit.removed == self.lengths[1]:
            return f"{what} {'from' if edit.removed else 'at'} the end"
        return f"{what} {'from' if edit.removed else 'at'} position {edit.at}{' on' if edit.removed else ''}"


def token_difference(target: Sequence[int], reference: Sequence[int]) -> TokenDifference | None:
    """Return how `target` differs from `reference`, None where they are equal. Linear in their length.

    Where tokens repeat, a removal may fit in several places; the latest is named.
    """
    if list(target) == list(reference):
        return None
    shorter = min(len(target), len(reference))
    prefix = next((at for at in range(shorter) if target[at] != reference[at]), shorter)
    rest = shorter - prefix
    suffix = next((at for at in range(rest) if target[-1 - at] != reference[-1 - at]), rest)
    ours, theirs = target[prefix : len(target) - suffix], reference[prefix : len(reference) - suffix]
    edits: tuple[Edit, ...] = (Edit(prefix, len(theirs), len(ours)),)
    if ours and theirs and max(len(ours), len(theirs)) <= CLOSE_LOOK:
        matched = SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes()
        edits = tuple(Edit(prefix + a, b - a, d - c) for tag, a, b, c, d in matched if tag != "equal")
    return TokenDifference((len(target), len(reference)), prefix, suffix, edits)
