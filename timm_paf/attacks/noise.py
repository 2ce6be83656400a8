"""Random numbers for starting points: from a generator, or from one seed an image.

Both give numbers evenly spread over (-1, 1); the balls make of them what they need. A generator's numbers depend on how
many were drawn before. Those of a seed are a function of (seed of the attack, attempt, seed of the image, position)
alone, so that an image starts where it starts whatever batch it came in, and whoever left that batch.
"""
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ['Noise', 'generated', 'seeded', 'wide_dtype']

Noise = Callable[[int], Tensor]

_GOLDEN = 0x9E3779B97F4A7C15  # the constants are those of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)
_MIX = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def generated(x: Tensor, generator: torch.Generator) -> Noise:
    """Noise from a generator.

    Args:
        x: The images (B, …): says how many, where and in which precision.
        generator: On x's device; it moves on with every call.

    Returns:
        A function n -> numbers (B, n) in (-1, 1).
    """
    dtype = wide_dtype(x.dtype)

    def draw(n: int) -> Tensor:
        numbers = torch.rand(len(x), n, generator=generator, device=x.device, dtype=dtype).mul_(2).sub_(1)
        return numbers.clamp_(min=torch.finfo(dtype).eps - 1)  # rand can be 0, the interval is open
    return draw


def seeded(x: Tensor, seeds: Tensor, *, seed: int, attempt: int) -> Noise:
    """Noise as a function of each image's own seed. Nothing waits for the device.

    Args:
        x: The images (B, …).
        seeds: One seed an image, (B,), int64.
        seed: Seed of the attack.
        attempt: Number of the restart.

    Returns:
        A function n -> numbers (B, n) in (-1, 1), never 0; the first ones do not depend on n.
    """
    attack = _mix_int(_mix_int(seed) + attempt * _GOLDEN)
    keys = _mix(seeds.to(x.device)[:, None] ^ _signed(attack))

    def draw(n: int) -> Tensor:
        counters = torch.arange(1, n + 1, device=x.device) * _signed(_GOLDEN)
        bits = 53 if wide_dtype(x.dtype) == torch.float64 else 24
        whole = _shifted(_mix(keys + counters), 64 - bits) | 1  # odd: even spacing, no 0, no end of the interval
        return whole.to(wide_dtype(x.dtype)).mul_(2.**(1 - bits)).sub_(1)
    return draw


def _signed(number: int) -> int:
    number &= _MASK
    return number - 2**64 if number >= 2**63 else number


def _shifted(z: Tensor, by: int) -> Tensor:
    """Z >> by for unsigned numbers; torch's shift copies the sign."""
    return (z >> by) & (2**(64 - by) - 1)


def _mix(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64; int64 arithmetic wraps around."""
    z = (z ^ _shifted(z, 30)) * _signed(_MIX[0])
    z = (z ^ _shifted(z, 27)) * _signed(_MIX[1])
    return z ^ _shifted(z, 31)


def _mix_int(z: int) -> int:
    z &= _MASK
    z = ((z ^ (z >> 30)) * _MIX[0]) & _MASK
    z = ((z ^ (z >> 27)) * _MIX[1]) & _MASK
    return z ^ (z >> 31)
