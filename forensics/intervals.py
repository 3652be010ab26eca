"""Confidence intervals of rates. Standard library only."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a proportion; (0, 1) for no trials.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", J. Am. Stat. Assoc.
    22 (1927) 209-212; preferred for small counts by Brown, Cai, DasGupta, Stat. Sci. 16 (2001) 101-133.
    It takes the trials to be independent.
    """
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = hits / trials, z * z / trials
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return (0.0 if hits == 0 else low), (1.0 if hits == trials else high)
