"""Random numbers for starting points: from a generator, or from one seed per image.

Both are uniform on (-1, 1); the balls transform them. Numbers from a generator depend on how many were drawn before.
Numbers from a seed are a function of (seed of the attack, restart, seed of the image, position) alone. So an image has
the same start in every batch, whichever other images have left it.
"""
from collections.abc import Callable

import torch
from torch import Tensor

from timm_paf._dtypes import compute_dtype
from timm_paf._random import GOLDEN, splitmix64, to_int64

__all__ = ['Noise', 'generated', 'seeded']

Noise = Callable[[int], Tensor]


def generated(x: Tensor, generator: torch.Generator) -> Noise:
    """Noise from a generator.

    Args:
        x: Images (B, …), which give the batch size, device and precision.
        generator: Generator on the device of x; every call advances it.

    Returns:
        A function n -> numbers (B, n) in (-1, 1).
    """
    dtype = compute_dtype(x.dtype)

    def draw(n: int) -> Tensor:
        numbers = torch.rand(len(x), n, generator=generator, device=x.device, dtype=dtype).mul_(2).sub_(1)
        return numbers.clamp_(min=torch.finfo(dtype).eps - 1)  # rand can return 0, but the interval is open
    return draw


def seeded(x: Tensor, seeds: Tensor, *, seed: int, attempt: int) -> Noise:
    """Noise as a function of the seed of each image. Nothing waits for the device.

    Args:
        x: Images (B, …).
        seeds: Seed of each image (B,), int64.
        seed: Seed of the attack.
        attempt: Number of the restart.

    Returns:
        A function n -> numbers (B, n) in (-1, 1), never 0; the first numbers do not depend on n.
    """
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
