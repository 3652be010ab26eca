"""How far a token was from being another one: margins in units in the last place, and tie classes.

ulp(z) = 2^(floor(log2 |z|) - p + 1) with p significand bits of the dtype that the logits had before any cast.
"""

from __future__ import annotations

import math
from typing import Literal

SIGNIFICAND_BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
NEAR_TIE_ULPS = 4.0
"""Natural flips from another order of additions are seen at 0 to 3 ulp; beyond 4 look for something else."""

TieClass = Literal["exact tie", "near tie", "clear"]


def ulp(value: float, dtype: str | None) -> float | None:
    """Return the spacing of `dtype` at `value`, or None for a dtype that we do not know."""
    bits = SIGNIFICAND_BITS.get((dtype or "").removeprefix("torch."))
    if bits is None or not math.isfinite(value):
        return None
    if value == 0:
        return 0.0
    return float(2.0 ** (math.floor(math.log2(abs(value))) - bits + 1))


def in_ulps(difference: float, at: float, dtype: str | None) -> float | None:
    """Return a difference of logits in ulps of the larger one (`at`), or None when the dtype is not known."""
    unit = ulp(at, dtype)
    if unit is None:
        return None
    return 0.0 if difference == 0 else (abs(difference) / unit if unit else math.inf)


def tie_class(margin: float, ulps: float | None) -> TieClass | None:
    """Return the class of a margin; None when it is not 0 and its ulps are not known."""
    if margin == 0:
        return "exact tie"
    if ulps is None:
        return None
    return "near tie" if ulps <= NEAR_TIE_ULPS else "clear"
