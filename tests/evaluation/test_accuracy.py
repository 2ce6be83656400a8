"""Counts and Wilson's interval."""
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
