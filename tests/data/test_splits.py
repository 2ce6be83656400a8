"""Stratified splits of any labels."""

import pytest
import torch

from timm_paf.data.splits import held_out, stratified_split

CASES = {
    'balanced': (torch.arange(100) % 10, [30, 20, 50]),
    'skewed': (torch.tensor([0] * 70 + [1] * 20 + [2] * 7), [10, 40, 47]),
    'sorted, a class of one': (torch.tensor([0] * 9 + [1]), [5, 5]),
    'gaps in the class numbers': (torch.tensor([4, 4, 9, 9, 9, 9]), [3, 3]),
    'one part': (torch.arange(7) % 2, [7]),
}


@pytest.mark.parametrize('case', CASES)
def test_parts_are_complete_disjoint_and_stratified(case):
    labels, sizes = CASES[case]
    split = stratified_split(labels, sizes, seed=0)
    assert [len(part) for part in split] == sizes
    assert torch.cat(split).sort().values.tolist() == list(range(len(labels)))
    left = torch.bincount(labels).double()
    for part, size in zip(split, sizes, strict=True):
        counts = torch.bincount(labels[part], minlength=len(left)).double()
        assert ((counts - size * left / left.sum()).abs() < 1).all()
        left -= counts


def test_every_prefix_is_nearly_balanced_but_in_no_fixed_cycle():
    labels = torch.arange(600) // 60
    part, _ = stratified_split(labels, [300, 300], seed=0)
    counts = torch.nn.functional.one_hot(labels[part], 10).cumsum(0)
    share = torch.arange(1, 301)[:, None] / 10
    assert (counts - share).abs().max() < 2
    assert torch.equal(part, stratified_split(labels, [300, 300], seed=0)[0])
    assert abs(len(set(part.tolist()) & set(stratified_split(labels, [300, 300], seed=1)[0].tolist())) - 150) < 45
    rounds = labels[part].reshape(30, 10)
    assert len({tuple(row.tolist()) for row in rounds}) > 20


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
    for sizes in [5, 4], [5, 6], [10, 0], []:
        with pytest.raises(ValueError, match='add up'):
            stratified_split(torch.arange(10), sizes, seed=0)
    for size in 0, 10:
        with pytest.raises(ValueError, match='expected 1 to 9'):
            held_out(torch.arange(10) % 2, size, seed=0)


@pytest.mark.parametrize('images, size', [(5, 1), (40, 4), (10_000, 1000), (50_000, 1024)])
def test_a_tenth_is_held_out_by_default(images, size):
    assert len(held_out(torch.zeros(images, dtype=torch.int64), None, seed=0)) == size
