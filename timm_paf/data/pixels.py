"""Augmentation of batches of images with given parameters per image, without randomness."""

import torch
import torch.nn.functional as F
from torch import Tensor

_GREY = (0.2989, 0.587, 0.114)  # luma of ITU-R BT.601, rounded as torchvision rounds it


def shift(images: Tensor, offsets: Tensor, *, padding: int) -> Tensor:
    """Pad with `padding` zeros on all sides and crop each image back to its size.

    Args:
        images: (B, C, H, W), any dtype.
        offsets: (B, 2) int64, row and column of the crop in the padded image, each in 0..2*padding.
        padding: Pixels on each side.

    Returns:
        (B, C, H, W), a new tensor of the same dtype.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    # a view of all windows; indexing copies one window per image, several times faster than single pixels
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, offsets[:, 0], offsets[:, 1]]


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror left to right the images (B, C, H, W) for which `chosen` (B,) bool is true."""
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, then contrast, then saturation, clipping to [0, 1] after each.

    With factor f, brightness is f * x; contrast is f * x + (1 - f) * the mean of the image's grey values; saturation is
    f * x + (1 - f) * its grey values. Images without three channels count as grey: their contrast uses the mean of all
    pixels, and they have no saturation.

    Args:
        images: (B, C, H, W) float32 in [0, 1].
        factors: (B, 3), brightness, contrast and saturation, each at least 0; 1 changes nothing.

    Returns:
        (B, C, H, W) float32 in [0, 1].

    Source: torchvision.transforms.functional `adjust_brightness`, `adjust_contrast`, `adjust_saturation`.
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    images = (images * brightness).clamp(0, 1)
    images = torch.lerp(_grey(images).mean((1, 2, 3), keepdim=True), images, contrast).clamp(0, 1)
    return images if images.shape[1] != 3 else torch.lerp(_grey(images), images, saturation).clamp(0, 1)


def blank(images: Tensor, boxes: Tensor) -> Tensor:
    """A copy of the images (B, C, H, W), any dtype, with the pixels in one box per image set to 0.

    Boxes (B, 4) are top, left, bottom and right, the last two exclusive; parts outside the image are ignored.
    """
    return images.masked_fill(_inside(boxes, images), 0)


def paste(images: Tensor, others: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the pixels in a box of each image by those of another image.

    Args:
        images: (B, C, H, W), any dtype.
        others: Like images.
        boxes: (B, 4), as for `blank`.

    Returns:
        The images (B, C, H, W), and the share (B,) float32 of each image's own pixels.
    """
    inside = _inside(boxes, images)
    return torch.where(inside, others, images), 1 - inside.flatten(1).float().mean(1)


def _inside(boxes: Tensor, images: Tensor) -> Tensor:
    """Whether pixels are in the boxes: (B, 1, H, W) bool."""
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    row, column = (torch.arange(size, device=images.device) for size in images.shape[-2:])
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images
    return (images * torch.tensor(_GREY, device=images.device)[:, None, None]).sum(1, keepdim=True)
