"""Stratified samples of any labels; the splits of the digits."""

import pytest
import torch

from timm_paf.data import digits_splits
from timm_paf.data.splits import held_out


def test_every_prefix_of_the_digits_is_nearly_balanced():
    for part in digits_splits():
        counts = torch.nn.functional.one_hot(part.labels, 10).cumsum(0)
        share = torch.arange(1, len(part) + 1)[:, None] * part.labels.bincount() / len(part)
        assert (counts - share).abs().max() < 2


HELD_OUT = {
    'balanced and sorted': (torch.arange(1000) // 100, 100),
    'skewed': (torch.tensor([0] * 700 + [1] * 200 + [2] * 7), 90),
    'gaps in the class numbers': (torch.tensor([4] * 30 + [9] * 60), 9),
    'all but one': (torch.arange(40) % 4, 39),
}


@pytest.mark.parametrize('case', HELD_OUT)
def test_held_out_sample_is_stratified(case):
    labels, size = HELD_OUT[case]
    chosen = held_out(labels, size, seed=0)
    assert len(chosen) == len(chosen.unique()) == size
    counts = torch.bincount(labels[chosen], minlength=int(labels.max()) + 1)
    assert ((counts - size * torch.bincount(labels) / len(labels)).abs() < 1).all()
    assert torch.equal(chosen, held_out(labels, size, seed=0))


def test_held_out_sample_is_another_one_for_another_seed_and_not_the_first_ones():
    labels = torch.arange(5000) // 500
    first, second = (set(held_out(labels, 500, seed=seed).tolist()) for seed in (0, 1))
    # two independent tenths have a tenth of themselves in common
    assert abs(len(first & second) - 50) < 5 * 45**0.5
    assert not torch.equal(labels[held_out(labels, 500, seed=0)].sort().values, labels[held_out(labels, 500, seed=0)])


def test_sizes_that_do_not_fit():
    for size in 0, 10:
        with pytest.raises(ValueError, match='expected 1 to 9'):
            held_out(torch.arange(10) % 2, size, seed=0)


@pytest.mark.parametrize('images, size', [(5, 1), (40, 4), (10_000, 1000), (50_000, 1024)])
def test_a_tenth_is_held_out_by_default(images, size):
    assert len(held_out(torch.zeros(images, dtype=torch.int64), None, seed=0)) == size
