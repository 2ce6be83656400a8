"""Statistics of a few runs: means with t intervals, the number of runs that a difference needs, rank correlations."""
import math
from collections.abc import Sequence

import numpy as np

__all__ = ['mean_interval', 'rank_correlation', 'runs_needed']

MOST_RUNS = 1000
RESAMPLES = 9999


def mean_interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean of the values of several runs, both ends of its 95 % interval, and the standard deviation.

    The interval is Student's, which assumes values that are about normal. Applied to differences between two runs with
    the same seed it is that of the paired t test. It covers the chance in training (seeds), not that in the choice of
    test images.

    Args:
        values: At least one. With one value, the ends and the standard deviation are NaN.

    Source: Student, "The probable error of a mean" (1908).
    """
    from scipy.stats import t  # takes a second to import
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, math.nan, math.nan, math.nan
    deviation = float(np.std(values, ddof=1))
    half = float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half, deviation


def runs_needed(deviation: float, half_width: float) -> int | None:
    """The smallest number of runs whose 95 % t interval is at most `half_width` to each side; None above 1000.

    Args:
        deviation: Standard deviation of one run, or of one paired difference, as measured with a few runs.
        half_width: In the same unit, > 0.
    """
    from scipy.stats import t
    n = np.arange(2, MOST_RUNS + 1)
    enough = n[t.ppf(0.975, n - 1) * deviation / np.sqrt(n) <= half_width]
    return int(enough[0]) if len(enough) else None


def rank_correlation(x: Sequence[float], y: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Spearman's rank correlation, and its two-sided p-value from permutations.

    All permutations are used if there are at most 9999, else 9999 random ones.

    Args:
        x, y: Pairs of values, in the same order; infinite values are ranked as well.
        seed: Seed of the permutations.

    Returns:
        Correlation and p-value; NaN with fewer than three pairs, or if one side is constant.

    Source: Spearman, "The proof and measurement of association between two things" (1904).
    """
    from scipy.stats import permutation_test, rankdata
    first, second = rankdata(x), rankdata(y)
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan, math.nan

    def statistic(values: np.ndarray, axis: int = -1) -> np.ndarray:
        a, b = values - values.mean(axis=axis, keepdims=True), second - second.mean()
        return (a * b).sum(axis) / np.sqrt((a * a).sum(axis) * (b * b).sum())

    found = permutation_test(
        (first,), statistic, permutation_type='pairings', vectorized=True, n_resamples=RESAMPLES,
        random_state=np.random.default_rng(seed))
    return float(found.statistic), float(found.pvalue)
