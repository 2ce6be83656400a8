"""Checks of what an attack is called with and of what the model returns."""
import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from timm_paf.attacks.state import eval_mode

__all__ = [
    'PixelCheck', 'check_batch', 'check_images', 'check_integers', 'check_logits', 'check_pixels', 'choose',
    'input_dtype',
]

T = TypeVar('T')
ROUNDING = 1e-5  # how far pixels of a training batch may be outside of [0, 1]; the attack clamps them


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
        raise ValueError(
            f'x is a {x.dtype} tensor of shape {tuple(x.shape)}; expected images (B, C, H, W) as floats in [0, 1].')
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


def check_pixels(x: Tensor, *, tolerance: float = 0.) -> None:
    """Raise ValueError if images are not floats, or a pixel is NaN or more than `tolerance` outside of [0, 1]."""
    if not x.is_floating_point():
        raise ValueError(f'images are a {x.dtype} tensor; expected floats in [0, 1]. Convert them: x.float() / 255.')
    if len(x):
        low, high = torch.stack([x.detach().min(), x.detach().max()]).tolist()
        _check_range(low, high, tolerance)


def _check_range(low: float, high: float, tolerance: float) -> None:
    if low >= -tolerance and high <= 1 + tolerance:  # false for NaN, which aminmax passes on
        return
    advice = 'Do not normalise the images; normalise inside the model: timm_paf.attacks.Normalized(model, mean, std).'
    if not -math.inf < low <= high < math.inf:
        advice = 'NaN or infinite pixels come from a damaged file or from the augmentation.'
    elif low >= 0 and 2 < high <= 255:
        advice = 'Divide the images by 255.'
    elif low >= -1 and high <= 1:
        advice = 'Rescale them: (x + 1) / 2. If the model expects [-1, 1], wrap it: Normalized(model, [0.5], [0.5]).'
    raise ValueError(f'images have pixels in [{low:g}, {high:g}]; expected [0, 1]. {advice}')


class PixelCheck:
    """Checks the images of each call of an attack or a task with `check_pixels`; on a GPU without waiting for it.

    On a GPU, it reads the pixels of the first calls at once. After that it checks some of the calls: the range is
    copied to the host while the GPU works, and a later call reads it and raises the error. Compiled or captured code
    is not checked.
    """
    first, every = 3, 16  # calls that are checked at once on a GPU; later, one of so many

    def __init__(self) -> None:
        self.calls = 0
        self.pending: tuple[Tensor, torch.cuda.Event] | None = None

    def __call__(self, x: Tensor) -> None:
        """Raise ValueError if x, or on a GPU an earlier batch, is not in [0, 1]."""
        on_gpu = x.device.type == 'cuda'
        if torch.compiler.is_compiling() or (on_gpu and torch.cuda.is_current_stream_capturing()):
            return
        if not on_gpu or not x.is_floating_point():
            check_pixels(x, tolerance=ROUNDING)
            return
        if self.pending is not None and self.pending[1].query():
            (low, high), self.pending = self.pending[0].tolist(), None
            _check_range(low, high, ROUNDING)
        self.calls += 1
        if self.calls <= self.first:
            check_pixels(x, tolerance=ROUNDING)
        elif self.pending is None and self.calls % self.every == 0 and x.numel():
            found, event = torch.empty(2, dtype=x.dtype, pin_memory=True), torch.cuda.Event()
            found.copy_(torch.stack(torch.aminmax(x.detach())), non_blocking=True)
            event.record()
            self.pending = found, event

    def __reduce__(self) -> tuple[type, tuple]:
        return PixelCheck, ()  # copies begin again: events cannot be copied


def check_images(
        model: nn.Module, x: Tensor, y: Tensor, *, device: torch.device, dtype: torch.dtype | None = None) -> int:
    """Check that images, labels and logits are valid for an evaluation, and return the number of classes.

    Args:
        model: Maps images to logits; runs on the first two images.
        x: Images (N, C, H, W), floating-point, in [0, 1]; at least one.
        y: Labels (N,), int64.
        device: Device of the model.
        dtype: The dtype in which the model will get the images; that of its weights if None.

    Raises:
        ValueError: If one of these is not so, the model fails, or logits are not finite or not (B, K).
    """
    check_batch(x, y=y)
    if not len(x):
        raise ValueError('there are no images; expected at least one.')
    check_pixels(x)
    with eval_mode(model), torch.no_grad():
        try:
            logits = model(x[:2].to(device, dtype or input_dtype(model)))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:  # of layers, about channels or sizes
            if dtype not in (None, own := input_dtype(model)):
                raise ValueError(
                    f'the model fails on {dtype} images, and its weights are {own}. Measure it in float32, on float32 '
                    f'images: model.float().') from error
            last = ' The channels are the last axis; expected (N, C, H, W).' if x.shape[-1] in (1, 3) else ''
            reason = str(error).partition('\n')[0]
            raise ValueError(f'the model fails on images of shape {tuple(x.shape[1:])}: {reason}{last}') from error
    logits = check_logits(logits, len(x[:2]))
    if not logits.isfinite().all():
        raise ValueError('the model returns NaN or infinite logits on clean images; check that its training finished.')
    classes = logits.shape[1]
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f'labels are from {int(y.min())} to {int(y.max())}; expected 0 to {classes - 1}.')
    return classes
