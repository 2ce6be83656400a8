"""Statistics of a few runs, against scipy and closed forms."""
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from timm_paf.evaluation.statistics import mean_interval, rank_correlation, runs_needed


def test_the_interval_of_paired_differences_is_that_of_the_paired_t_test():
    one, other = [41.2, 40.1, 43.0, 42.2], [40.0, 40.3, 41.1, 41.9]
    mean, low, high, deviation = mean_interval([a - b for a, b in zip(one, other, strict=True)])
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high)) and mean == pytest.approx((low + high) / 2)
    assert deviation == pytest.approx(np.std(np.subtract(one, other), ddof=1))


def test_one_run_has_no_interval_and_equal_runs_have_one_of_width_zero():
    mean, *ends = mean_interval([3.])
    assert mean == 3 and all(map(math.isnan, ends))
    assert mean_interval([3., 3.]) == (3, 3, 3, 0)


@pytest.mark.parametrize('deviation', [0.1, 0.5, 2.])
def test_the_interval_of_the_runs_needed_is_just_narrow_enough(deviation):
    n = runs_needed(deviation, 1.)
    widths = [stats.t.ppf(0.975, k - 1) * deviation / k ** 0.5 for k in (n, n - 1) if k > 1]
    assert widths[0] <= 1 and all(width > 1 for width in widths[1:])
    assert runs_needed(0., 1.) == 2 and runs_needed(100., 1.) is None


def test_rank_correlation_of_few_pairs_counts_all_permutations():
    x, y = [1., 2., 5., 9., 4.], [0.1, 0.4, 0.2, 0.9, 0.8]
    correlation, p = rank_correlation(x, y)
    assert correlation == pytest.approx(stats.spearmanr(x, y).statistic)
    every = [stats.spearmanr(order, y).statistic for order in itertools.permutations(x)]
    # two-sided as scipy has it: twice the smaller tail
    tails = [sum(sign * value >= sign * correlation - 1e-9 for value in every) / len(every) for sign in (1, -1)]
    assert p == pytest.approx(min(1, 2 * min(tails)))


def test_rank_correlation_of_many_pairs_repeats_and_agrees_with_the_t_approximation():
    generator = np.random.default_rng(0)
    x = generator.normal(size=40)
    y = x + 2 * generator.normal(size=40)
    found, expected = rank_correlation(x, y), stats.spearmanr(x, y)
    assert found == rank_correlation(x, y)
    assert found[0] == pytest.approx(expected.statistic) and found[1] == pytest.approx(expected.pvalue, abs=0.03)


def test_ties_and_infinite_values_are_ranked():
    """A kink has infinite curvature."""
    assert rank_correlation([1, 1, 2, math.inf], [1, 2, 3, 4])[0] == pytest.approx(
        stats.spearmanr([1, 1, 2, 9], [1, 2, 3, 4]).statistic)


@pytest.mark.parametrize('x, y', [([1., 2.], [1., 2.]), ([1., 1., 1.], [1., 2., 3.])], ids=['two pairs', 'constant'])
def test_without_a_correlation_there_is_none(x, y):
    assert all(map(math.isnan, rank_correlation(x, y)))
