"""Numbers from seeds: a function of them alone, and as random as they should be."""
import pytest
import torch
from scipy.stats import kstest

from timm_paf._random import splitmix64
from timm_paf.attacks.random_start import generated, seeded


@pytest.mark.parametrize('dtype, bits', [(torch.float32, 24), (torch.float64, 53)], ids=str)
@pytest.mark.parametrize('seed, attempt, image', [(0, 0, 0), (2**63, 1, -5)])
def test_bits_are_those_of_unsigned_arithmetic(dtype, bits, seed, attempt, image):
    """The same with Python's integers."""
    golden, wrap = 0x9E3779B97F4A7C15, 2**64
    attack = splitmix64((splitmix64(seed) + attempt * golden) % wrap)
    key = splitmix64((image % wrap) ^ attack)
    expected = [
        ((splitmix64((key + i * golden) % wrap) >> (64 - bits)) | 1) * 2.**(1 - bits) - 1 for i in range(1, 6)]
    numbers = seeded(torch.zeros(1, 5, dtype=dtype), torch.tensor([image]), seed=seed, attempt=attempt)(5)
    assert numbers.dtype == dtype and numbers[0].tolist() == expected


def test_a_number_depends_on_seed_attempt_image_and_place_alone():
    x, seeds = torch.zeros(6, 4), torch.arange(6)
    whole = seeded(x, seeds, seed=1, attempt=0)(50)
    order = torch.tensor([4, 0, 3])
    assert torch.equal(seeded(x[order], seeds[order], seed=1, attempt=0)(50), whole[order])
    assert torch.equal(seeded(x, seeds, seed=1, attempt=0)(20), whole[:, :20])
    for other in (seeded(x, seeds, seed=2, attempt=0)(50), seeded(x, seeds, seed=1, attempt=1)(50), whole.roll(1, 0)):
        assert (other != whole).float().mean() > 0.99


@pytest.mark.parametrize('source, dtype', [
    ('images', torch.float32), ('attempts', torch.float32), ('places', torch.float64), ('generator', torch.float32)])
def test_numbers_are_even_and_independent(source, dtype):
    """Along each of the things they depend on; neighbours are not correlated."""
    n = 50_000
    x = torch.zeros(n, 1, dtype=dtype)
    if source == 'images':
        numbers = seeded(x, torch.arange(n), seed=0, attempt=0)(1).flatten()
    elif source == 'attempts':
        numbers = torch.cat([seeded(x[:1], torch.tensor([3]), seed=0, attempt=i)(1)[0] for i in range(2000)])
    elif source == 'places':
        numbers = seeded(x[:1], torch.tensor([3]), seed=0, attempt=0)(n).flatten()
    else:
        numbers = generated(x, torch.Generator().manual_seed(0))(1).flatten()
    assert numbers.min() > -1 and numbers.max() < 1 and (source == 'generator' or not (numbers == 0).any())
    assert kstest((numbers + 1) / 2, 'uniform').pvalue > 1e-3
    for lag in (1, 2, 3, 7):
        assert (3 * numbers[lag:] * numbers[:-lag]).mean().abs() < 5 / len(numbers) ** 0.5


def test_zero_of_the_generator_is_inside_the_interval(monkeypatch):
    """It comes once in 16 million numbers; erfinv would make it infinite."""
    monkeypatch.setattr(torch, 'rand', lambda *shape, generator, **kwargs: torch.zeros(*shape, **kwargs))
    numbers = generated(torch.zeros(1, 2), torch.Generator())(3)
    assert numbers.min() > -1 and torch.erfinv(numbers).isfinite().all()
