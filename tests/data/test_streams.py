"""Shares of a stream that are exact at every length, and the parts of a batch that processes take."""

from fractions import Fraction
from itertools import pairwise
from math import ceil, log2

import pytest
import torch

from timm_paf.data import EndlessStream, Rank, RealPasses, counts_after
from timm_paf.data.streams import exact_weights

WEIGHTS = {
    'one': (1,),
    'equal': (1, 1),
    'seven to three': (0.7, 0.3),
    'thirds': (1, 1, 1),
    'a rare one': (0.001, 1),
    'rare ones among common ones': (0.01, 1, 0.01, 1, 0.02),
    'five of all sizes': (5, 1, 4, 2, 3),
    'eight equal': (1,) * 8,
}


@pytest.mark.parametrize('case', WEIGHTS)
def test_counts_add_up_never_fall_and_keep_to_the_share(case):
    weights = exact_weights(WEIGHTS[case], count=len(WEIGHTS[case]))
    table = [counts_after(n, weights) for n in range(1500)]
    halvings = ceil(log2(len(weights)))
    for n, counts in enumerate(table):
        assert sum(counts) == n
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - n * weight / sum(weights)) <= Fraction(halvings, 2)
    for before, after in pairwise(table):
        assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0] * (len(weights) - 1) + [1]


def test_weights_are_what_their_digits_say():
    # in binary 0.1 is a little more than 1/10; over 10^20 places that would be hundreds of images
    assert counts_after(10**20, exact_weights((0.1, 0.9), count=2)) == [10**19, 9 * 10**19]


@pytest.mark.parametrize(
    ('weights', 'message'),
    [((1,), 'got 1 weights .* for 2'), ((1, 0), 'weight 0'), ((1, -1), 'weight -1'), ((1, float('nan')), 'weight nan'),
     ((1, float('inf')), 'weight inf'), ((1, '2'), "weight '2'"), ((1, True), 'weight True')], ids=str)
def test_weights_out_of_range(weights, message):
    with pytest.raises(ValueError, match=message):
        exact_weights(weights, count=2)


SIZES = (11, 5, 23)


def stream(seed=0):
    return EndlessStream(SIZES, exact_weights((1, 0.5, 2), count=3), seed)


@pytest.mark.parametrize('step', [1, 2, 7, 64, 1000])
def test_stretches_of_the_stream_join_without_gap(step):
    whole = stream().indices(0, 2000)
    joined = zip(*(stream().indices(first, step) for first in range(0, 2000, step)), strict=True)
    for one, stretches in zip(whole, joined, strict=True):
        assert torch.equal(one, torch.cat(stretches)[:len(one)])


def test_each_source_goes_through_passes_of_its_own():
    for size, indices in zip(SIZES, stream().indices(0, 700), strict=True):
        passes = indices[:len(indices) // size * size].reshape(-1, size)
        assert len(passes) >= 8
        assert (passes.sort(1).values == torch.arange(size)).all()
        # five images have 120 orders only, so that one of them may well come twice
        assert len(passes.unique(dim=0)) > len(passes) / 2


def test_sources_of_one_size_are_not_walked_in_step():
    twins = EndlessStream((50, 50), exact_weights((1, 1), count=2), 0)
    first, second = twins.indices(0, 100)
    assert not torch.equal(first, second)


def test_real_images_pass_once_an_epoch():
    passes = RealPasses(53, 8, 0)
    orders = [torch.cat([passes.indices(epoch, step) for step in range(7)]) for epoch in range(3)]
    assert [passes.count(step) for step in range(8)] == [8] * 6 + [5, 0]
    for order in orders:
        assert order.sort().values.tolist() == list(range(53))
    assert len({tuple(order.tolist()) for order in orders}) == 3


@pytest.mark.parametrize('world_size', [1, 2, 3, 7])
@pytest.mark.parametrize('counts', [(8, 8), (5, 3), (7, 0, 2), (1, 1, 1), (154, 358)], ids=str)
def test_ranks_share_a_batch(counts, world_size):
    offsets = [sum(counts[:number]) for number in range(len(counts))]
    shares = [
        [Rank(rank, world_size).rows(count, offset) for count, offset in zip(counts, offsets, strict=True)]
        for rank in range(world_size)
    ]
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for number, count in enumerate(counts):
        rows = [share[number] for share in shares]
        assert torch.cat(rows).sort().values.tolist() == list(range(count))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize(('rank', 'world_size'), [(0, 0), (1, 1), (-1, 2)], ids=str)
def test_rank_out_of_range(rank, world_size):
    with pytest.raises(ValueError, match='world_size'):
        Rank(rank, world_size)
