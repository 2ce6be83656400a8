"""Labelled images held in memory, and the small face that every image source of this package shows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_SUM_TOLERANCE = 1e-3  # of a row of soft labels: float16 archives with many classes come this far from 1


class ImageSource(Protocol):
    """What batch mixing needs from a set of images: random access by index, and nothing about where they lie.

    `LabelledImages` and `ConcatenatedImages` are sources; one that reads from disk on each `take` would be another.
    """

    @property
    def name(self) -> str:
        """Short name for messages."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes K; labels lie in 0..K-1."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) that all images share."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W), uint8 or float32 in [0, 1], and labels at `indices` (B,) int64.

        Labels are (B,) int64, or (B, K) float32 with rows that sum to 1 if the source has soft labels.
        """
        ...


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with one class label each, in memory, checked once when they are put together.

    Images may be strided views (an NHWC archive seen as NCHW), so no copy is needed to bring them here. uint8 stays
    uint8, a quarter of the memory; `to_unit_range` makes floats of a batch when it is taken.

    Args:
        images: (N, C, H, W), float32 with finite values in [0, 1], or uint8. N, C, H and W are at least 1.
        labels: (N,) int64 with values in 0..num_classes-1, or soft: (N, num_classes) float32, every value at least 0
            and every row with sum 1 (within 1e-3); on the same device as the images.
        num_classes: number of classes, at least 1.
        name: short name that messages use for this set.

    Raises:
        ValueError: if anything above does not hold.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    name: str

    def __post_init__(self) -> None:
        _check_images(self.images, self.name)
        _check_labels(self.labels, len(self.images), self.num_classes, self.name)
        if self.labels.device != self.images.device:
            raise ValueError(
                f'{self.name}: images are on {self.images.device} but labels on {self.labels.device}; '
                f'move both to one device'
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def soft(self) -> bool:
        """Whether labels are probabilities."""
        return self.labels.ndim == 2

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Copy out the images and labels at some indices.

        Args:
            indices: (B,) int64 in 0..N-1, any device.

        Returns:
            Images (B, C, H, W) in their stored dtype and labels (B,) or (B, K), on the device of this set.
        """
        indices = indices.to(self.images.device, non_blocking=True)
        return self.images[indices], self.labels[indices]

    def subset(self, indices: Tensor, *, name: str) -> 'LabelledImages':
        """The images at `indices` ((M,) int64, M >= 1) as a set of their own, called `name`."""
        images, labels = self.take(indices)
        return LabelledImages(images, labels, self.num_classes, name)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape, dtype, pixels, labels (as they are, hard or soft) and class count, not of the name.

        Two sets with the same fingerprint hold the same data, whatever their strides or device.
        """
        digest = hashlib.sha256(f'{tuple(self.images.shape)} {self.images.dtype} {self.num_classes}'.encode())
        digest.update(self.images.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class ConcatenatedImages:
    """Several sources one after the other, seen as one, without copying any of them.

    Args:
        parts: at least one source; all share image shape and class count. Their dtypes may differ: a batch that draws
            from parts of different dtypes is float32 in [0, 1], and if one part has soft labels, so has the whole.
        name: short name for messages; the parts' names joined by '+' if None.

    Raises:
        ValueError: if there is no part, or parts differ in image shape or class count.
    """

    def __init__(self, parts: Sequence[ImageSource], *, name: str | None = None) -> None:
        if not parts:
            raise ValueError('got no parts to concatenate, expected at least one; pass a non-empty sequence')
        for part in parts[1:]:
            check_compatible(parts[0], part)
        self.parts = tuple(parts)
        self.name = name if name is not None else '+'.join(part.name for part in parts)
        self.num_classes = parts[0].num_classes
        self.image_shape = parts[0].image_shape
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        kinds = {has_soft_labels(part) for part in parts}
        self.soft = True in kinds
        self._mixed = len(kinds) > 1

    def __len__(self) -> int:
        """Number of images in all parts together."""
        return int(self._ends[-1])

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Copy out images (B, C, H, W) and labels at `indices` ((B,) int64 in 0..N-1), in the order asked for.

        Raises:
            IndexError: if an index is outside 0..N-1.
        """
        indices = indices.cpu()
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= len(self)):
            raise IndexError(f'{self.name}: index outside 0..{len(self) - 1}')
        owner = torch.bucketize(indices, self._ends, right=True)
        images, labels, slots = [], [], []
        for number in owner.unique().tolist():
            slot = (owner == number).nonzero()[:, 0]
            start = int(self._ends[number]) - len(self.parts[number])
            part_images, part_labels = self.parts[number].take(indices[slot] - start)
            images.append(part_images)
            labels.append(label_distribution(part_labels, self.num_classes) if self._mixed else part_labels)
            slots.append(slot)
        if not slots:
            return self.parts[0].take(indices)
        if len({image.dtype for image in images}) > 1:
            images = [to_unit_range(image) for image in images]
        back = torch.cat(slots).argsort().to(images[0].device)
        return torch.cat(images)[back], torch.cat(labels)[back]


def to_unit_range(images: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1]: uint8 becomes x / 255 (correctly rounded), float32 is returned as it is.

    Args:
        images: any shape, uint8 or float32.

    Raises:
        ValueError: for any other dtype.
    """
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    if images.dtype == torch.float32:
        return images
    raise ValueError(f'got images of dtype {images.dtype}, expected uint8 or float32; convert them first')


def label_distribution(labels: Tensor, num_classes: int, *, smoothing: float = 0.) -> Tensor:
    """Labels as probabilities (B, K) float32.

    Args:
        labels: (B,) int64 or, soft already, (B, K) float32.
        num_classes: K.
        smoothing: s in [0, 1]; gives (1 - s) * p + s / K, as torch's cross_entropy has it.
    """
    if labels.ndim == 1:
        labels = F.one_hot(labels, num_classes).float()
    return torch.lerp(labels, torch.full_like(labels, 1 / num_classes), smoothing) if smoothing else labels


def has_soft_labels(source: ImageSource) -> bool:
    """Whether a source hands out labels as probabilities.

    A source that knows has a property `soft`; of another one image is read, unless it decodes (`ahead`).
    """
    soft = getattr(source, 'soft', None)
    if soft is not None:
        return soft
    return not hasattr(source, 'ahead') and source.take(torch.zeros(1, dtype=torch.int64))[1].ndim == 2


def check_compatible(first: ImageSource, second: ImageSource) -> None:
    """Make sure that images of two sources can stand in one batch.

    Raises:
        ValueError: if image shapes or class counts differ.
    """
    if first.image_shape != second.image_shape:
        raise ValueError(
            f'{second.name} holds images of shape {second.image_shape} but {first.name} of {first.image_shape} '
            f'(channels, height, width); all sources need one shape: resize or convert one of them'
        )
    if first.num_classes != second.num_classes:
        raise ValueError(
            f'{second.name} has {second.num_classes} classes but {first.name} has {first.num_classes}; '
            f'all sources need the same classes: open them with one num_classes'
        )


def _check_images(images: Tensor, name: str) -> None:
    if not isinstance(images, Tensor) or images.dtype not in (torch.float32, torch.uint8):
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f'{name}: got images as {got}, expected a torch tensor of float32 or uint8; convert them')
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f'{name}: got images of shape {tuple(images.shape)}, expected (N, C, H, W) with nothing empty; '
            f'reshape them, with channels second'
        )
    if images.dtype == torch.float32:
        low, high = (bound.item() for bound in images.aminmax())
        # aminmax gives NaN if there is one anywhere, and every comparison with NaN is False
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f'{name}: got pixels from {low:g} to {high:g}, expected finite values in [0, 1]; '
                f'scale them (x / 255 for 8-bit images), do not normalise'
            )


def _check_labels(labels: Tensor, count: int, num_classes: int, name: str) -> None:
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f'{name}: got num_classes={num_classes!r}, expected an integer of at least 1')
    if isinstance(labels, Tensor) and labels.dtype == torch.float32:
        _check_soft_labels(labels, count, num_classes, name)
        return
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f'{name}: got labels as {got}, expected a torch tensor of int64; convert them with .long()')
    if labels.shape != (count,):
        raise ValueError(
            f'{name}: got labels of shape {tuple(labels.shape)} for {count} images, expected ({count},); '
            f'give one class number per image'
        )
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f'{name}: got labels from {low} to {high}, expected 0 to {num_classes - 1}; '
            f'correct num_classes={num_classes} or the labels'
        )


def _check_soft_labels(labels: Tensor, count: int, num_classes: int, name: str) -> None:
    if labels.shape != (count, num_classes):
        raise ValueError(
            f'{name}: got soft labels of shape {tuple(labels.shape)} for {count} images, expected '
            f'({count}, {num_classes}); give one probability per image and class'
        )
    # written so that NaN counts as wrong
    wrong = ~((labels >= 0).all(1) & ((labels.sum(1) - 1).abs() <= _SUM_TOLERANCE))
    if wrong.any():
        index = int(wrong.int().argmax())
        raise ValueError(
            f'{name}: got soft labels that are no probabilities (first at image {index}, sum '
            f'{float(labels[index].sum()):g}), expected values >= 0 with sum 1; apply a softmax to logits'
        )
