"""Checks of what an attack is called with and of what the model returns."""
import torch
from torch import Tensor, nn

from timm_paf.attacks.state import eval_mode

__all__ = ['check_batch', 'check_images', 'check_logits', 'check_pixels', 'input_dtype']


def check_batch(
        x: Tensor,
        y: Tensor,
        *,
        seeds: Tensor | None = None,
        target: Tensor | None = None,
        clean_logits: Tensor | None = None,
) -> None:
    """Check that the tensors of a call fit together. Their values are not read, which would wait for the device.

    Raises:
        ValueError: If x is not a floating-point batch, or another tensor does not have one row per image.
        RuntimeError: Inside torch.inference_mode.
    """
    if torch.is_inference_mode_enabled() or x.is_inference():
        raise RuntimeError('PGD needs gradients, which torch.inference_mode disables; use torch.no_grad instead.')
    if not x.is_floating_point() or x.dim() < 2:
        raise ValueError(
            f'x is a {x.dtype} tensor of shape {tuple(x.shape)}; expected a floating-point batch (B, C, H, W).')
    for label, what, value in (('y', 'label', y), ('seeds', 'seed', seeds), ('target', 'class', target)):
        if value is not None and value.shape != x.shape[:1]:
            raise ValueError(
                f'{label} has shape {tuple(value.shape)}; expected one {what} for each of {x.shape[0]} images.')
        if value is not None and value.dtype != torch.int64:
            raise ValueError(f'{label} is a {value.dtype} tensor; expected torch.int64.')
    if clean_logits is not None and (clean_logits.dim() != 2 or len(clean_logits) != len(x)):
        raise ValueError(
            f'clean_logits has shape {tuple(clean_logits.shape)}; expected logits (B, K) of {len(x)} images.')


def check_logits(logits: Tensor, n: int, *, differentiable: bool = False) -> Tensor:
    """Return the logits of n images unchanged, after a check of their shape.

    Raises:
        ValueError: If they are not (n, K), or if they need a gradient and have none.
    """
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
    """Check that all pixels are in [0, 1].

    Raises:
        ValueError: If a pixel is outside of [0, 1] or NaN.
    """
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f'images have pixels in [{low:g}, {high:g}]; expected [0, 1]. Normalise inside the model, and divide uint8 '
            'images by 255.')


def check_images(model: nn.Module, x: Tensor, y: Tensor, *, device: torch.device) -> int:
    """Check that images, labels and logits are valid for an evaluation.

    Args:
        model: Maps images to logits; runs on the first two images.
        x: Images (N, C, H, W), floating-point, in [0, 1].
        y: Labels (N,), int64.
        device: Device of the model.

    Returns:
        The number of classes.

    Raises:
        ValueError: If pixels are outside of [0, 1], shapes or labels do not fit, or logits are not finite or not
            (B, K).
    """
    if not x.is_floating_point() or x.dim() < 2 or not len(x):
        raise ValueError(f'x is a {x.dtype} tensor of shape {tuple(x.shape)}; expected images (N, C, H, W) as floats.')
    if y.shape != x.shape[:1]:
        raise ValueError(f'y has shape {tuple(y.shape)}; expected one label for each of {len(x)} images.')
    check_pixels(x)
    with eval_mode(model), torch.no_grad():
        logits = check_logits(model(x[:2].to(device, input_dtype(model))), len(x[:2]))
    if not logits.isfinite().all():
        raise ValueError('the model returns NaN or infinite logits on clean images; check that its training finished.')
    classes = logits.shape[1]
    if y.dtype != torch.int64 or int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(
            f'labels are {y.dtype} from {int(y.min())} to {int(y.max())}; expected int64 from 0 to {classes - 1}.')
    return classes
