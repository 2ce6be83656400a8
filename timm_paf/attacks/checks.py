"""Checks of what an attack is called with and of what the model returns."""
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from timm_paf.attacks.state import eval_mode

__all__ = ['check_batch', 'check_images', 'check_integers', 'check_logits', 'check_pixels', 'choose', 'input_dtype']

T = TypeVar('T')


def choose(label: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of a table with this name; ValueError if there is none."""
    if name not in table:
        raise ValueError(f'{label} = {name!r}: expected {", ".join(table)}.')
    return table[name]


def check_integers(least: int, **numbers: object) -> None:
    """Raise ValueError if a number is not an integer, or smaller than `least`."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f'{name} = {number!r}: expected an integer, at least {least}.')


def check_batch(x: Tensor, *, clean_logits: Tensor | None = None, **rows: Tensor | None) -> None:
    """Check that images, their logits, and tensors (B,) of int64 by name fit together, without reading values."""
    if not x.is_floating_point() or x.dim() < 2:
        raise ValueError(f'x is a {x.dtype} tensor of shape {tuple(x.shape)}; expected images (B, C, H, W) as floats.')
    for label, value in rows.items():
        if value is not None and value.shape != x.shape[:1]:
            raise ValueError(f'{label} has shape {tuple(value.shape)}; expected one value for each of {len(x)} images.')
        if value is not None and value.dtype != torch.int64:
            raise ValueError(f'{label} is a {value.dtype} tensor; expected torch.int64.')
    if clean_logits is not None and (clean_logits.dim() != 2 or len(clean_logits) != len(x)):
        raise ValueError(
            f'clean_logits has shape {tuple(clean_logits.shape)}; expected logits (B, K) of {len(x)} images.')


def check_logits(logits: Tensor, n: int, *, differentiable: bool = False) -> Tensor:
    """Return logits (n, K) unchanged; ValueError if they have another shape, or need a gradient and have none."""
    if not isinstance(logits, Tensor):
        raise ValueError(
            f'the model returns a {type(logits).__name__}; expected logits, a tensor ({n}, classes). Wrap the model in '
            f'a module that returns its logits alone.')
    if logits.dim() != 2 or len(logits) != n:
        raise ValueError(f'the model returns a tensor of shape {tuple(logits.shape)}; expected logits ({n}, classes).')
    if differentiable and not logits.requires_grad:
        raise ValueError(
            "the model's logits have no gradient to its input; remove the detach, no_grad or integer operation that "
            'stops it.')
    return logits


def input_dtype(model: nn.Module) -> torch.dtype:
    """The dtype in which a model takes images: that of its first weight with two or more axes, else float32."""
    return next((p.dtype for p in model.parameters() if p.dim() > 1 and p.is_floating_point()), torch.float32)


def check_pixels(x: Tensor) -> None:
    """Raise ValueError if a pixel is outside of [0, 1] or NaN."""
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f'images have pixels in [{low:g}, {high:g}]; expected [0, 1]. Normalise inside the model, and divide uint8 '
            'images by 255.')


def check_images(model: nn.Module, x: Tensor, y: Tensor, *, device: torch.device) -> int:
    """Check that images, labels and logits are valid for an evaluation, and return the number of classes.

    Args:
        model: Maps images to logits; runs on the first two images.
        x: Images (N, C, H, W), floating-point, in [0, 1]; at least one.
        y: Labels (N,), int64.
        device: Device of the model.

    Raises:
        ValueError: If one of these is not so, or logits are not finite or not (B, K).
    """
    check_batch(x, y=y)
    if not len(x):
        raise ValueError('there are no images; expected at least one.')
    check_pixels(x)
    with eval_mode(model), torch.no_grad():
        logits = check_logits(model(x[:2].to(device, input_dtype(model))), len(x[:2]))
    if not logits.isfinite().all():
        raise ValueError('the model returns NaN or infinite logits on clean images; check that its training finished.')
    classes = logits.shape[1]
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f'labels are from {int(y.min())} to {int(y.max())}; expected 0 to {classes - 1}.')
    return classes
