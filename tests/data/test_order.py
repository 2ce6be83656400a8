"""Permutations without a table, seeds of named streams, exact shares of a stream, and those of processes."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise, permutations
from math import ceil, factorial, log2

import pytest
import torch

from timm_paf.data.order import (
    IndexPermutation,
    counts_after,
    derive_seed,
    exact_weights,
    generator_for,
    pass_indices,
    stream_indices,
)


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


def test_key_decides_the_order_and_any_place_can_be_asked_for_alone():
    orders = [
        IndexPermutation(777, *key)(torch.arange(777))
        for key in [('a', 1, 23), ('a', 12, 3), ('a', '1', 23), ('b', 1, 23)]]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(IndexPermutation(777, 'a', 1, 23)(torch.tensor([776, 0, 5, 5])), orders[0][[776, 0, 5, 5]])
    assert IndexPermutation(777, 'a')(torch.arange(0)).tolist() == []


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
    assert pass_indices(0, 10, 10, 'synthetic', 0).tolist() == [9, 2, 7, 5, 1, 6, 8, 0, 4, 3]
    assert len(pass_indices(10, 0, 10, 'real', 0)) == 0


@pytest.mark.parametrize('parts', [(0,), (-5,), (2**80,), ('mix', 3, 2**63)], ids=str)
def test_seeds_are_accepted_by_torch(parts):
    assert 0 <= derive_seed(*parts) < 2**63
    first, second = (torch.rand(4, generator=generator_for(*parts)) for _ in range(2))
    assert torch.equal(first, second)


WEIGHTS = {
    'one': (1,),
    'seven to three': (0.7, 0.3),
    'thirds': (1, 1, 1),
    'rare ones among common ones': (0.01, 1, 0.01, 1, 0.02),
    'eight equal': (1,) * 8,
}


@pytest.mark.parametrize('case', WEIGHTS)
def test_counts_add_up_never_fall_and_keep_to_the_share(case):
    weights = exact_weights(WEIGHTS[case])
    table = [counts_after(n, weights) for n in range(500)]
    for n, counts in enumerate(table):
        assert sum(counts) == n
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - n * weight / sum(weights)) <= Fraction(ceil(log2(len(weights))), 2)
    for before, after in pairwise(table):
        assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0] * (len(weights) - 1) + [1]


def test_weights_are_what_their_digits_say():
    # in binary 0.1 is a little more than 1/10; over 10^20 places that would be hundreds of images
    assert counts_after(10**20, exact_weights((0.1, 0.9))) == [10**19, 9 * 10**19]
    for weight in (0, -1, float('nan'), float('inf')):
        with pytest.raises(ValueError, match=f'weight {weight}'):
            exact_weights((1, weight))


def test_sources_of_one_size_have_orders_of_their_own():
    first, second = stream_indices(0, 100, sizes=(50, 50), weights=exact_weights((1, 1)), seed=0)
    assert not torch.equal(first, second)
