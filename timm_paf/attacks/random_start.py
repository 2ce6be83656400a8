"""Random numbers for starting points, uniform on (-1, 1): from a generator, or from one seed per image.

Numbers from a seed are a function of (seed of the attack, restart, seed of the image, position) alone.
"""
from collections.abc import Callable

import torch
from torch import Tensor

from timm_paf._dtypes import compute_dtype
from timm_paf._random import GOLDEN, splitmix64, to_int64

__all__ = ['Noise', 'generated', 'seeded']

Noise = Callable[[int], Tensor]


def generated(x: Tensor, generator: torch.Generator) -> Noise:
    """Noise n -> numbers (B, n) for images x (B, …), from a generator on their device."""
    dtype = compute_dtype(x.dtype)

    def draw(n: int) -> Tensor:
        numbers = torch.rand(len(x), n, generator=generator, device=x.device, dtype=dtype).mul_(2).sub_(1)
        return numbers.clamp_(min=torch.finfo(dtype).eps - 1)  # rand can return 0, but the interval is open
    return draw


def seeded(x: Tensor, seeds: Tensor, *, seed: int, attempt: int) -> Noise:
    """Noise n -> numbers (B, n), never 0, from the seeds of images and attack, and the number of the restart."""
    attack = splitmix64((splitmix64(seed % 2**64) + attempt * GOLDEN) % 2**64)
    keys = splitmix64(seeds.to(x.device)[:, None] ^ to_int64(attack))
    dtype = compute_dtype(x.dtype)
    bits = 53 if dtype == torch.float64 else 24

    def draw(n: int) -> Tensor:
        counters = torch.arange(1, n + 1, device=x.device) * to_int64(GOLDEN)
        words = (splitmix64(keys + counters) >> (64 - bits)) & (2**bits - 1)
        odd = words | 1  # even spacing, without 0 and without the ends of the interval
        return odd.to(dtype).mul_(2.**(1 - bits)).sub_(1)
    return draw
