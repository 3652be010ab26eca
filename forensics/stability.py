"""The margins of a request's tokens as a budget: how little drift would have turned one, and how much there was.

A token turns where its two best logits move against each other by at least the margin: |Δ(z_a - z_b)| ≥ margin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from forensics.flip import logit_table
from forensics.margin import NEAR_TIE_ULPS, in_ulps

if TYPE_CHECKING:
    from forensics.incident import Incident

EARLY = 32
"""Output tokens whose margins are the budget: a flip there changes all that follows. A choice."""


class Budget(NamedTuple):
    """tokens: how many of the first EARLY state a margin; near: of those, at most 4 ulp; least: (ulps, output token).

    spent: (drift / margin, output token) of the token before the flip that was nearest to turning; None: not on record.
    """

    tokens: int
    near: int
    least: tuple[float, int]
    spent: tuple[float, int] | None

    def says(self) -> str:
        """Return it in words."""
        words = (
            f"of the reference's first {self.tokens} tokens {self.near} had a margin of at most {NEAR_TIE_ULPS:g} ulp, "
            f"the smallest {self.least[0]:.3g} ulp at token {self.least[1]}"
        )
        if self.spent is None:
            return words
        share, token = self.spent
        return f"{words}; before the flip the drift came nearest to a margin at token {token}: {share:.0%} of it"


def budget(incident: Incident) -> Budget | None:
    """Return the budget of the reference's early tokens, None where no margin in ulps is on record."""
    rows = incident.arms()[1].tokens().head(EARLY).iter_rows(named=True)
    ulps = [(found, row["token_index"]) for row in rows if (found := _ulps(row)) is not None]
    if not ulps:
        return None
    pairs = incident.token_pairs()
    spent = [(share, other["token_index"]) for one, other in pairs[:-1] if (share := _spent(one, other)) is not None]
    near = sum(found <= NEAR_TIE_ULPS for found, _ in ulps)
    return Budget(len(ulps), near, min(ulps), max(spent, key=lambda one: one[0], default=None))


def _ulps(row: dict[str, Any]) -> float | None:
    logits = row["top_logits"]
    return in_ulps(logits[0] - logits[1], logits[0], row["logit_dtype"]) if logits and len(logits) > 1 else None


def _spent(ours: dict[str, Any], theirs: dict[str, Any]) -> float | None:
    """Return drift / margin of the reference's two best tokens, None where both arms do not hold both, or in a tie."""
    mine, other = logit_table(ours), logit_table(theirs)
    best = list(other)[:2]
    if len(best) < 2 or not set(best) <= mine.keys() or other[best[0]] == other[best[1]]:
        return None
    margin = other[best[0]] - other[best[1]]
    return abs(mine[best[0]] - mine[best[1]] - margin) / margin
