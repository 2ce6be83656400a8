"""Labelled images in memory, and the protocol of all image sources."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_SUM_TOLERANCE = 1e-3  # of a row of soft labels; rows in float16 with many classes are this inexact


class ImageSource(Protocol):
    """Labelled images with random access by index, in memory or elsewhere.

    A source whose classes have names also has `class_names`, a tuple of text in the order of the class numbers.
    """

    @property
    def name(self) -> str:
        """Short name for messages."""

    @property
    def num_classes(self) -> int:
        """Number of classes K; labels lie in 0..K-1."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of every image."""

    def __len__(self) -> int:
        """Number of images."""

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels at `indices`, (B,) int64 in 0..N-1.

        Images are (B, C, H, W), uint8 or float32 in [0, 1]. Labels are (B,) int64, or soft labels: (B, K) float32 with
        rows that sum to 1.
        """


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Labelled images in memory, checked on construction.

    Images may be strided views, such as an NHWC archive seen as NCHW, and are not copied. uint8 takes a quarter of the
    memory of floats; `to_unit_range` converts batches.

    Args:
        images: (N, C, H, W), uint8, or float32 with finite values in [0, 1]. No axis is empty.
        labels: (N,) int64 in 0..num_classes-1; or soft labels: (N, num_classes) float32, not negative, with rows that
            sum to 1 (within 1e-3). They are on the device of the images.
        num_classes: Number of classes, at least 1.
        name: Short name for messages.
        class_names: Names of the classes in the order of their numbers, if they have names.

    Raises:
        ValueError: If an argument is not as above.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    name: str
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if fault := (
                _image_fault(self.images) or _label_fault(self.labels, len(self.images), self.num_classes)
                or names_fault(self.class_names, self.num_classes)
                or (self.labels.device != self.images.device
                    and f'images on {self.images.device} but labels on {self.labels.device}; move both to one device')):
            raise ValueError(f'{self.name}: got {fault}')

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
        """Copy images (B, C, H, W) and labels (B,) or (B, K) at `indices` ((B,) int64 in 0..N-1, on any device)."""
        indices = indices.to(self.images.device, non_blocking=True)
        return self.images[indices], self.labels[indices]

    def subset(self, indices: Tensor, *, name: str) -> 'LabelledImages':
        """A new set, called `name`, of the images at `indices` ((M,) int64, M >= 1)."""
        return LabelledImages(*self.take(indices), self.num_classes, name, self.class_names)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape, dtype, pixels, labels and number of classes; not of name, strides or device."""
        digest = hashlib.sha256(f'{tuple(self.images.shape)} {self.images.dtype} {self.num_classes}'.encode())
        for data in (self.images, self.labels):
            digest.update(data.cpu().contiguous().numpy().data)
        return digest.hexdigest()


class ConcatenatedImages:
    """Several sources in sequence as one source, without copying them.

    Args:
        parts: At least one source; all have the same image shape and number of classes. A batch from parts of different
            dtypes is float32 in [0, 1]. If one part has soft labels, all batches have.

    Raises:
        ValueError: If there is no part, or parts differ in image shape or number of classes.
    """

    def __init__(self, parts: Sequence[ImageSource]) -> None:
        if not parts:
            raise ValueError('got no parts to concatenate, expected at least one; pass a non-empty sequence')
        for part in parts[1:]:
            check_compatible(parts[0], part)
        self.parts = tuple(parts)
        self.name = '+'.join(part.name for part in parts)
        self.num_classes, self.image_shape = parts[0].num_classes, parts[0].image_shape
        self.class_names = next(filter(None, (getattr(part, 'class_names', None) for part in parts)), None)
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        kinds = {has_soft_labels(part) for part in parts}
        self.soft = True in kinds
        self._mixed = len(kinds) > 1

    def __len__(self) -> int:
        """Number of images in all parts."""
        return int(self._ends[-1])

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels as in `ImageSource.take`; raises IndexError if an index is outside 0..N-1."""
        indices = checked_indices(indices, self)
        owner = torch.bucketize(indices, self._ends, right=True)
        images, labels = [], []
        for number in owner.unique().tolist() or [0]:
            start = int(self._ends[number]) - len(self.parts[number])
            part_images, part_labels = self.parts[number].take(indices[owner == number] - start)
            images.append(part_images)
            labels.append(label_distribution(part_labels, self.num_classes) if self._mixed else part_labels)
        if len({image.dtype for image in images}) > 1:
            images = [to_unit_range(image) for image in images]
        back = owner.argsort(stable=True).argsort().to(images[0].device)
        return torch.cat(images)[back], torch.cat(labels)[back]


def collect(
    batches: Iterable[tuple[Tensor, Tensor]], *, num_classes: int, name: str,
    class_names: tuple[str, ...] | None = None,
) -> LabelledImages:
    """One set in memory from at least one batch of images and labels."""
    images, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    return LabelledImages(images, labels, num_classes, name, class_names)


def to_unit_range(images: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1]: uint8 becomes x / 255, float32 is unchanged; raises ValueError for other dtypes."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    if images.dtype == torch.float32:
        return images
    raise ValueError(f'got images of dtype {images.dtype}, expected uint8 or float32; convert them first')


def label_distribution(labels: Tensor, num_classes: int, *, smoothing: float = 0.) -> Tensor:
    """Labels, (B,) int64 or (B, K) float32, as probabilities (B, K) float32.

    Label smoothing s in [0, 1] gives (1 - s) * p + s / K, as in torch's cross_entropy.
    """
    if labels.ndim == 1:
        labels = F.one_hot(labels, num_classes).float()
    return torch.lerp(labels, torch.full_like(labels, 1 / num_classes), smoothing) if smoothing else labels


def has_soft_labels(source: ImageSource) -> bool:
    """Whether the labels of a source are probabilities; without a property `soft`, one image is read."""
    if hasattr(source, 'soft'):
        return source.soft
    # images that are decoded (`prefetch`) have class numbers
    return not hasattr(source, 'prefetch') and source.take(torch.zeros(1, dtype=torch.int64))[1].ndim == 2


def checked_indices(indices: Tensor, source: ImageSource) -> Tensor:
    """Indices on the CPU; raises IndexError if one is outside 0..N-1 of the source."""
    indices = indices.cpu()
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= len(source)):
        wrong = int(indices[(indices < 0) | (indices >= len(source))][0])
        raise IndexError(f'{source.name}: index {wrong} is out of range; there are {len(source)} images.')
    return indices


def check_compatible(first: ImageSource, second: ImageSource) -> None:
    """Raise ValueError if images of two sources cannot be in one batch: shapes or numbers of classes differ."""
    if first.image_shape != second.image_shape:
        raise ValueError(
            f'{second.name} holds images of shape {second.image_shape} but {first.name} of {first.image_shape} '
            f'(channels, height, width); all sources need the same shape: resize or convert one of them')
    if first.num_classes != second.num_classes:
        raise ValueError(
            f'{second.name} has {second.num_classes} classes but {first.name} has {first.num_classes}; '
            f'all sources need the same classes: open them with one num_classes')
    names, others = (getattr(source, 'class_names', None) for source in (first, second))
    if names and others and names != others:
        raise ValueError(
            f'{second.name} has other class names than {first.name}, or another order of them ({", ".join(others[:5])} '
            f'and {", ".join(names[:5])}); match them first, with match_classes')


def names_fault(names: object, num_classes: int) -> str | None:
    """What is wrong with the names of the classes."""
    if names is None:
        return None
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        return f'class_names as {type(names).__name__}, expected a tuple of text'
    if len(names) != num_classes or len(set(names)) != len(names):
        return f'{len(set(names))} different class names for {num_classes} classes, expected one for each'
    return None


def _image_fault(images: Tensor) -> str | None:
    kind = getattr(images, 'dtype', type(images).__name__)
    if kind not in (torch.float32, torch.uint8):
        return f'images as {kind}, expected a torch tensor of float32 or uint8; convert them'
    if images.ndim != 4 or 0 in images.shape:
        return f'images of shape {tuple(images.shape)}, expected (N, C, H, W) with nothing empty; reshape them'
    if images.dtype == torch.float32:
        low, high = (bound.item() for bound in images.aminmax())
        if not (low >= 0 and high <= 1):  # true for NaN, which aminmax returns if any value is NaN
            return (
                f'pixels from {low:g} to {high:g}, expected finite values in [0, 1]; scale them (x / 255 for 8-bit '
                f'images), do not normalise')
    return None


def _label_fault(labels: Tensor, count: int, num_classes: int) -> str | None:
    if not isinstance(num_classes, int) or num_classes < 1:
        return f'num_classes={num_classes!r}, expected an integer of at least 1'
    kind = getattr(labels, 'dtype', type(labels).__name__)
    if kind not in (torch.float32, torch.int64):
        return f'labels as {kind}, expected a torch tensor of int64; convert them with .long()'
    soft = labels.dtype == torch.float32
    expected = (count, num_classes) if soft else (count,)
    if labels.shape != expected:
        return (
            f'{"soft " * soft}labels of shape {tuple(labels.shape)} for {count} images, expected {expected}; give one '
            f'{"probability per image and class" if soft else "class number per image"}')
    if soft:
        wrong = ~((labels >= 0).all(1) & ((labels.sum(1) - 1).abs() <= _SUM_TOLERANCE))  # true for NaN
        if wrong.any():
            index = int(wrong.int().argmax())
            return (
                f'soft labels that are not probabilities (first at image {index}, sum {float(labels[index].sum()):g}), '
                f'expected values >= 0 with sum 1; apply a softmax to logits')
        return None
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= num_classes:
        return (
            f'labels from {low} to {high}, expected 0 to {num_classes - 1}; correct num_classes={num_classes} or the '
            f'labels')
    return None
