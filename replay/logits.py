"""The highest logits of a row as a step record says them. JSON has no NaN and no infinity. Standard library only."""

from __future__ import annotations

import math
from typing import Any


def logit_fields(values: list[float]) -> dict[str, Any]:
    """Return `top_logits` and `margin` of the highest logits, highest first; `nonfinite_logits` where one is no number.

    A margin from an infinity would say nothing, and a record with a NaN could not be written at all.
    """
    broken = sum(not math.isfinite(value) for value in values)
    if broken:
        return {"nonfinite_logits": broken}
    return {"top_logits": values} | ({"margin": values[0] - values[1]} if len(values) > 1 else {})
