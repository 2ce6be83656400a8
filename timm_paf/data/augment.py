"""Augmentation of whole batches, on the device where the batch is, with random numbers that the caller hands in."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to the images of one source; the default does nothing.

    Args:
        crop_padding: shift each image by up to this many pixels each way, as padding and random cropping do; >= 0.
            The paper uses 4 on 32x32 images.
        hflip: mirror each image left to right with probability 1/2. Not for digits: most have no mirror image.

    Raises:
        ValueError: if crop_padding is not an integer of at least 0.
    """

    crop_padding: int = 0
    hflip: bool = False

    def __post_init__(self) -> None:
        _check_padding(self.crop_padding)

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Shift, then mirror, images (B, C, H, W); dtype and device stay. `generator` is a CPU generator."""
        if self.crop_padding:
            images = random_shift(images, self.crop_padding, generator=generator)
        if self.hflip:
            images = random_hflip(images, generator=generator)
        return images


def random_shift(images: Tensor, padding: int, *, generator: torch.Generator) -> Tensor:
    """Pad with zeros on all sides and crop each image back to its size at a place of its own.

    Args:
        images: (B, C, H, W), any dtype and device.
        padding: pixels on each side, >= 0; both offsets are uniform in 0..2*padding.
        generator: CPU generator; offsets are drawn on the CPU, so they are the same for every device.

    Returns:
        (B, C, H, W), a new tensor of the same dtype and device.

    Raises:
        ValueError: if the padding is not an integer of at least 0.
    """
    _check_padding(padding)
    count, channels, height, width = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    rows = (offsets[0] + torch.arange(height)).to(images.device)
    columns = (offsets[1] + torch.arange(width)).to(images.device)
    image = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    padded = F.pad(images, (padding, padding, padding, padding))
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def random_hflip(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2.

    Args:
        images: (B, C, H, W), any dtype and device.
        generator: CPU generator.

    Returns:
        (B, C, H, W), a new tensor of the same dtype and device.
    """
    chosen = torch.randint(0, 2, (len(images), 1, 1, 1), generator=generator).to(images.device, torch.bool)
    return torch.where(chosen, images.flip(-1), images)


def _check_padding(padding: int) -> None:
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise ValueError(f'got crop_padding={padding!r}, expected an integer of at least 0; 0 leaves images in place')
