"""Counts and Wilson's interval."""
from statistics import NormalDist

import pytest

from timm_paf.evaluation import Accuracy


@pytest.mark.parametrize('counts', [(-1, 2), (3, 2), (0, 0)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match='expected 0 <= correct <= total'):
        Accuracy(*counts)


@pytest.mark.parametrize('correct, total, low, high', [
    (0, 10, 0., 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.), (6155, 10000, 0.6059, 0.6250)])
def test_interval_is_the_published_one(correct, total, low, high):
    assert Accuracy(correct, total).interval() == pytest.approx((low, high), abs=5e-5)  # Newcombe (1998)


@pytest.mark.parametrize('correct, total', [(0, 10), (3, 10), (10, 10), (354, 360), (5000, 10000)])
@pytest.mark.parametrize('confidence', [0.9, 0.95])
def test_ends_of_the_interval(correct, total, confidence):
    """The ends are the probabilities p from which the observed accuracy is z standard deviations away."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / total
    low, high = Accuracy(correct, total).interval(confidence)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1
    for end, at_edge in ((low, correct == 0), (high, correct == total)):
        if not at_edge:
            assert abs(share - end) == pytest.approx(z * (end * (1 - end) / total) ** 0.5, rel=1e-9)


@pytest.mark.parametrize('confidence', [0., 1., 95])
def test_impossible_confidence_is_refused(confidence):
    with pytest.raises(ValueError, match='between 0 and 1'):
        Accuracy(1, 2).interval(confidence)
