"""Augmentation of whole batches on their device, with random numbers from a generator of the caller."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite, log

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_paf.data.arrays import to_unit_range

_ERASED_AREA = (0.02, 1 / 3)  # share of the image and log of height / width, as in timm's RandomErasing
_ERASED_LOG_ASPECT = (log(0.3), log(1 / 0.3))
_GREY = (0.2989, 0.587, 0.114)  # luma of ITU-R BT.601, rounded as torchvision rounds it


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Augmentation of the images of one source, in the order of the arguments; the default does nothing.

    A few random numbers per image are drawn on the CPU and copied to the device, where each augmentation is a few
    operations on the whole batch. Results are the same on every device, bit for bit, except for rounding in
    `color_jitter`.

    Args:
        crop_padding: Shift each image by up to this number of pixels in each direction, as padding and random cropping
            do; >= 0. The paper uses 4 for 32x32 images.
        hflip: Mirror each image left to right with probability 1/2. Not for digits: mirrored digits are not digits.
        color_jitter: s >= 0; multiply brightness, contrast and saturation, in this order, by factors that are uniform
            in [max(0, 1 - s), 1 + s].
        cutout: Set a square of this side in pixels to 0; its centre is any pixel, the border crops it; >= 0.
        erase_prob: Probability with which a rectangle in the image is set to 0; its area is uniform in 2 % to 1/3 of
            the image, the logarithm of its aspect ratio uniform between those of 0.3 and 1/0.3. A rectangle that is
            longer than the image is cropped.
        cutmix: a >= 0; replace a rectangle of each image by that of another image of the same source and batch, and the
            same share of its label. The share is Beta(a, a) before the rectangle is cropped at the border. 0 for none.

    Raises:
        ValueError: If a setting is out of range.

    Source: DeVries and Taylor, arXiv 1708.04552, for cutout; Zhong et al., arXiv 1708.04896, for erasing; Yun et al.,
    arXiv 1905.04899, for cutmix.
    """

    crop_padding: int = 0
    hflip: bool = False
    color_jitter: float = 0.
    cutout: int = 0
    erase_prob: float = 0.
    cutmix: float = 0.

    def __post_init__(self) -> None:
        for name in ('crop_padding', 'cutout'):
            if not isinstance(value := getattr(self, name), int) or value < 0:
                raise ValueError(f'got {name}={value!r}, expected an integer of at least 0; 0 turns it off')
        for name, most in ('color_jitter', inf), ('erase_prob', 1), ('cutmix', inf):
            if not (isfinite(value := getattr(self, name)) and 0 <= value <= most):
                raise ValueError(f'got {name}={value!r}, expected a finite number from 0 to {most}')

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Augment images (B, C, H, W) with random numbers from a CPU generator, without `cutmix` (see `labelled`).

        Dtype and device are kept, but colour jitter converts uint8 to float32.
        """
        if self.cutmix:
            raise ValueError(f'got cutmix={self.cutmix} without labels, which it changes; call labelled() instead')
        return self.apply(images, self.draw(len(images), images.shape[1:], generator=generator))

    def labelled(self, images: Tensor, target: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment images (B, C, H, W) and their label distributions (B, K) float32; cutmix pairs image i with i + 1."""
        draws = self.draw(len(images), images.shape[1:], generator=generator)
        images = self.apply(images, draws)
        return self.mix(images, images.roll(-1, 0), target, target.roll(-1, 0), draws)

    def draw(self, count: int, image_shape: torch.Size, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the random numbers for `count` images (C, H, W): tensors on the CPU with one row per image."""
        _, height, width = image_shape
        draws = {}
        if self.crop_padding:
            sides = 2 * self.crop_padding + 1
            draws['shift'] = torch.randint(0, sides, (2, count), generator=generator).T.contiguous()
        if self.hflip:
            draws['mirror'] = torch.randint(0, 2, (count,), generator=generator).bool()
        if self.color_jitter:
            low, high = max(0., 1 - self.color_jitter), 1 + self.color_jitter
            draws['jitter'] = low + (high - low) * torch.rand(count, 3, generator=generator)
        if self.cutout:
            draws['cutout'] = _draw_square(count, self.cutout, height, width, generator)
        if self.erase_prob:
            draws['erase'] = _draw_rectangle(count, self.erase_prob, height, width, generator)
        if self.cutmix:
            draws['cutmix'] = _draw_mixed(count, self.cutmix, height, width, generator)
        return draws

    def apply(self, images: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        """Augment images (B, C, H, W), except by cutmix, with draws of B rows on their device."""
        if 'shift' in draws:
            images = shift(images, draws['shift'], padding=self.crop_padding)
        if 'mirror' in draws:
            images = mirror(images, draws['mirror'])
        if 'jitter' in draws:
            images = jitter(to_unit_range(images), draws['jitter'])
        for name in ('cutout', 'erase'):
            if name in draws:
                images = blank(images, draws[name])
        return images

    def mix(
        self, images: Tensor, others: Tensor, target: Tensor, other_target: Tensor, draws: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Apply cutmix: paste from `others` into `images`, both (B, C, H, W), and mix label distributions (B, K)."""
        if 'cutmix' not in draws:
            return images, target
        images, own = paste(images, others, draws['cutmix'])
        return images, torch.lerp(other_target, target, own[:, None])


def _draw_square(count: int, side: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    top = torch.randint(0, height, (count,), generator=generator) - side // 2
    left = torch.randint(0, width, (count,), generator=generator) - side // 2
    return _boxes(top, left, side, side)


def _draw_rectangle(count: int, probability: float, height: int, width: int, generator: torch.Generator) -> Tensor:
    chosen, area, aspect, top, left = torch.rand(5, count, generator=generator, dtype=torch.float64)
    least, most = area.new_tensor(_ERASED_AREA)
    area = height * width * torch.lerp(least, most, area)
    least, most = aspect.new_tensor(_ERASED_LOG_ASPECT)
    aspect = torch.lerp(least, most, aspect).exp()
    rows = (area * aspect).sqrt().round().clamp(1, height)
    columns = (area / aspect).sqrt().round().clamp(1, width)
    top, left = (top * (height - rows + 1)).floor(), (left * (width - columns + 1)).floor()
    return _boxes(top, left, rows, columns).long() * (chosen < probability)[:, None]


def _draw_mixed(count: int, alpha: float, height: int, width: int, generator: torch.Generator) -> Tensor:
    from scipy.special import betaincinv  # slow to import; torch's Beta distribution takes no generator

    share, row, column = torch.rand(3, count, generator=generator, dtype=torch.float64)
    share = torch.from_numpy(betaincinv(alpha, alpha, share.numpy()))
    rows, columns = ((length * share.sqrt()).round().long() for length in (height, width))
    return _boxes((row * height).long() - rows // 2, (column * width).long() - columns // 2, rows, columns)


def _boxes(top: Tensor, left: Tensor, rows: Tensor | int, columns: Tensor | int) -> Tensor:
    return torch.stack([top, left, top + rows, left + columns], 1)


def shift(images: Tensor, offsets: Tensor, *, padding: int) -> Tensor:
    """Pad images (B, C, H, W) with `padding` zeros on all sides and crop each back to its size.

    `offsets` (B, 2) int64 are row and column of the crop in the padded image, each in 0..2*padding.
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
    """Change brightness, contrast and saturation of images (B, C, H, W) float32, clipping to [0, 1] after each.

    `factors` (B, 3) are at least 0; 1 changes nothing. With factor f, brightness is f * x; contrast is f * x + (1 - f)
    * the mean of the image's grey values; saturation is f * x + (1 - f) * its grey values. Images without three
    channels count as grey: their contrast uses the mean of all pixels, and they have no saturation.

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
    """Replace the pixels in the boxes (as for `blank`) by those of the other images, both (B, C, H, W).

    Returns the images, and the share (B,) float32 of each image's own pixels.
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
