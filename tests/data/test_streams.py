"""Shares of a stream that are exact at every length, and the parts of a batch that processes take."""

from fractions import Fraction
from itertools import pairwise
from math import ceil, log2

import pytest
import torch

from timm_paf.data.streams import counts_after, exact_weights, pass_indices, rank_rows, stream_indices

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


@pytest.mark.parametrize('weight', [0, -1, float('nan'), float('inf')])
def test_weights_out_of_range(weight):
    with pytest.raises(ValueError, match=f'weight {weight}'):
        exact_weights((1, weight))


SIZES = (11, 5, 23)


def stream(first, count):
    return stream_indices(first, count, sizes=SIZES, weights=exact_weights((1, 0.5, 2)), seed=0)


@pytest.mark.parametrize('step', [1, 7, 64])
def test_stretches_of_the_stream_join_without_gap(step):
    whole = stream(0, 200)
    joined = zip(*(stream(first, step) for first in range(0, 200, step)), strict=True)
    for one, stretches in zip(whole, joined, strict=True):
        assert torch.equal(one, torch.cat(stretches)[:len(one)])


def test_each_source_goes_through_passes_of_its_own():
    for size, indices in zip(SIZES, stream(0, 700), strict=True):
        passes = indices[:len(indices) // size * size].reshape(-1, size)
        assert len(passes) >= 8
        assert (passes.sort(1).values == torch.arange(size)).all()
        # five images have 120 orders only, so that one of them may well come twice
        assert len(passes.unique(dim=0)) > len(passes) / 2
    first, second = stream_indices(0, 100, sizes=(50, 50), weights=exact_weights((1, 1)), seed=0)
    assert not torch.equal(first, second)


def test_passes_never_change():
    # published numbers depend on this order; the key of a pass is (purpose, seed, source, number of the pass)
    assert pass_indices(0, 10, 10, 'synthetic', 0).tolist() == [9, 2, 7, 5, 1, 6, 8, 0, 4, 3]
    assert len(pass_indices(10, 0, 10, 'real', 0)) == 0


@pytest.mark.parametrize('world_size', [1, 2, 3, 7])
@pytest.mark.parametrize('counts', [(8, 8), (7, 0, 2), (154, 358)], ids=str)
def test_ranks_share_a_batch(counts, world_size):
    offsets = [sum(counts[:number]) for number in range(len(counts))]
    shares = [
        [rank_rows(count, offset, rank=rank, world_size=world_size)
         for count, offset in zip(counts, offsets, strict=True)]
        for rank in range(world_size)
    ]
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for number, count in enumerate(counts):
        rows = [share[number] for share in shares]
        assert torch.cat(rows).sort().values.tolist() == list(range(count))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
