"""Permutations without a table, and seeds of named streams."""

from collections import Counter
from itertools import permutations
from math import factorial

import pytest
import torch

from timm_paf.data.order import IndexPermutation, derive_seed, generator_for


def test_every_size_is_permuted():
    for size in [*range(1, 120), 9_999, 10_000, 10_001, 2**16, 2**16 + 1]:
        order = IndexPermutation(size, 'test', 0)(torch.arange(size))
        assert torch.equal(order.sort().values, torch.arange(size)), size


@pytest.mark.parametrize('size', [10**8, 2**40 + 1, 2**62], ids=['1e8', '2^40+1', '2^62'])
def test_huge_sizes_stay_inside_and_apart(size):
    positions = torch.cat([torch.arange(500), torch.arange(size - 500, size)])
    order = IndexPermutation(size, 'test')(positions)
    assert len(order.unique()) == 1000
    assert order.min() >= 0 and order.max() < size
    # a mean of 1000 uniform values lies within 5 standard errors: a half that is never reached would show
    assert abs(order.double().mean() / size - 0.5) < 5 * (1 / 12 / 1000) ** 0.5


@pytest.mark.parametrize('size', [2, 3, 4])
def test_all_orders_of_a_small_range_are_equally_likely(size):
    trials = 60 * factorial(size)
    seen = Counter(tuple(IndexPermutation(size, 'uniform', key)(torch.arange(size)).tolist()) for key in range(trials))
    expected = trials / factorial(size)
    chi2 = sum((seen[order] - expected) ** 2 / expected for order in permutations(range(size)))
    freedom = factorial(size) - 1
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


def test_each_element_is_equally_likely_at_each_place():
    size, trials = 30, 1000
    counts = torch.zeros(size, size)
    for key in range(trials):
        counts[torch.arange(size), IndexPermutation(size, 'place', key)(torch.arange(size))] += 1
    expected, freedom = trials / size, (size - 1) ** 2
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5


def test_any_place_can_be_asked_for_alone():
    permutation = IndexPermutation(777, 'test')
    whole = permutation(torch.arange(777))
    assert torch.equal(permutation(torch.tensor([776, 0, 5, 5])), whole[[776, 0, 5, 5]])
    assert permutation(torch.arange(0)).tolist() == []


def test_key_decides_the_order():
    def order(*key):
        return IndexPermutation(1000, *key)(torch.arange(1000)).tolist()

    assert order('a', 1, 2) == order('a', 1, 2)
    assert len({tuple(order(*key)) for key in [('a', 1, 23), ('a', 12, 3), ('a', '1', 23), ('b', 1, 23)]}) == 4


@pytest.mark.parametrize(
    ('size', 'place', 'error'), [(0, 0, ValueError), (2**62 + 1, 0, ValueError), (10, -1, IndexError),
     (10, 10, IndexError)])
def test_out_of_range(size, place, error):
    with pytest.raises(error, match='expected'):
        IndexPermutation(size)(torch.tensor([place]))


def test_order_and_seeds_never_change():
    # published numbers depend on these: a change of the hash, the rounds or their order must be seen
    assert derive_seed('shuffle', 0, 1, 2) == 5770627820815433256
    assert IndexPermutation(10, 'synthetic', 0, 0)(torch.arange(10)).tolist() == [9, 2, 7, 5, 1, 6, 8, 0, 4, 3]


@pytest.mark.parametrize('parts', [(0,), (-5,), (2**80,), ('mix', 3, 2**63)], ids=str)
def test_seeds_are_accepted_by_torch(parts):
    assert 0 <= derive_seed(*parts) < 2**63
    first, second = (torch.rand(4, generator=generator_for(*parts)) for _ in range(2))
    assert torch.equal(first, second)
