"""Classes of a source: names decide which number a class has wherever two sources both have names."""

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from timm_paf.data.arrays import ConcatenatedImages, ImageSource, has_soft_labels

_CHUNK = 4096


def all_labels(source: ImageSource) -> Tensor:
    """Class numbers (N,) int64 of all images of a source, the most likely class for soft labels."""
    if isinstance(source, ConcatenatedImages):
        return torch.cat([all_labels(part) for part in source.parts])
    if hasattr(source, 'class_numbers'):
        return source.class_numbers()
    labels = getattr(source, 'labels', None)
    if labels is None:
        labels = torch.cat([source.take(indices)[1] for indices in torch.arange(len(source)).split(_CHUNK)])
    return hard(torch.as_tensor(labels))


def hard(labels: Tensor) -> Tensor:
    """Class numbers (B,) int64 of class numbers or of soft labels (B, K)."""
    return labels.long() if labels.ndim == 1 else labels.argmax(1)


def class_names(source: ImageSource) -> tuple[str, ...] | None:
    """Names of the classes of a source in the order of their numbers; None if it has none."""
    names = getattr(source, 'class_names', None)
    return None if names is None else tuple(names)


def names_of_classes(classes: Any) -> tuple[str, ...] | None:
    """Names from what data sets call `classes` or `class_to_idx`: a sequence of names, or numbers by name."""
    if not classes:
        return None
    if isinstance(classes, dict):
        if sorted(classes.values()) != list(range(len(classes))):
            return None
        classes = sorted(classes, key=classes.__getitem__)
    # torchvision gives several words for each class of ImageNet, and 'crane' to two classes
    names = [', '.join(name) if isinstance(name, tuple) else str(name) for name in classes]
    times = Counter(names)
    return tuple(f'{name} ({number})' if times[name] > 1 else name for number, name in enumerate(names))


def match_classes(
    source: ImageSource, names: Sequence[str] | None, *, num_classes: int | None = None, other: str = 'training',
) -> Any:
    """The source with class numbers by these names, where the source has names as well.

    The source may lack classes. Names that are numbers in both are compared as numbers, so that `01` is `1`. If one
    side has no names, classes are compared by number: that which is the name, or else its place in the order. Names of
    the source that are numbers are class numbers where the others are words.

    Args:
        source: Image source.
        names: Names of the classes 0, 1, …; None if there are none.
        num_classes: Number of classes, if there are no names.
        other: Which images have these names, for messages.

    Raises:
        ValueError: If the source has a name that is not among them; or, without names, another number of classes.
    """
    own = class_names(source)
    if own is not None and names is None and num_classes is not None and all(map(_is_number, own)):
        names = tuple(map(str, range(num_classes)))
    if own and names and all(map(_is_number, own)) and not all(map(_is_number, names)):  # they are not names then
        matched = match_classes(source, None, num_classes=len(names), other=other)
        if dataclasses.is_dataclass(type(matched)):  # keeps what a source that decodes has in addition
            return dataclasses.replace(matched, class_names=None)
        return RenumberedImages(matched, torch.arange(len(names)), None)
    if own is None or names is None:
        expected = num_classes if names is None else len(names)
        if expected not in (None, source.num_classes):
            raise ValueError(
                f'{source.name}: has {source.num_classes} classes, but the {other} images have {expected}; it is for '
                f'another data set, or num_classes is wrong')
        return source
    if own == tuple(names):
        return source
    keys, known = _keys(own, names)
    if foreign := [name for name, key in zip(own, keys, strict=True) if key not in known]:
        raise ValueError(
            f'{source.name}: the {other} images do not have its {"classes" if len(foreign) > 1 else "class"} '
            f'{_listed(foreign)}, but {_listed(names)}; rename the classes, or remove the foreign ones')
    table = torch.tensor([known[key] for key in keys])
    if isinstance(source, ConcatenatedImages):
        return ConcatenatedImages([match_classes(part, names, other=other) for part in source.parts])
    if dataclasses.is_dataclass(source) and hasattr(source, 'labels'):
        # of sources in memory, and of those that decode
        changes: dict[str, Any] = dict(num_classes=len(names), class_names=tuple(names))
        return dataclasses.replace(source, labels=_renumbered(source.labels, table, len(names)), **changes)
    return RenumberedImages(source, table, tuple(names))


class RenumberedImages:
    """The images of a source with class number `table[i]` ((K,) int64) in place of i."""

    def __init__(self, source: ImageSource, table: Tensor, names: tuple[str, ...] | None) -> None:
        self.source, self.table, self.class_names = source, table, names
        self.num_classes = len(table if names is None else names)
        self.name, self.image_shape, self.soft = source.name, source.image_shape, has_soft_labels(source)
        self.report = None
        if report := getattr(source, 'report', None):
            counts = dict(zip(table.tolist(), report.class_counts, strict=True))
            self.report = dataclasses.replace(
                report, class_counts=tuple(counts.get(number, 0) for number in range(self.num_classes)))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """As the source's, with the new class numbers."""
        images, labels = self.source.take(indices)
        return images, _renumbered(labels, self.table, self.num_classes)

    def class_numbers(self) -> Tensor:
        """Class numbers (N,) int64 of all images."""
        return self.table[all_labels(self.source)]


def check_classes(source: ImageSource) -> None:
    """Raise ValueError if a training set has a class without images, or one class that holds all images."""
    for part in getattr(source, 'parts', (source,)):
        folder: Any = getattr(part, 'dataset', None)
        if empty := getattr(folder, 'empty_folders', None):
            raise ValueError(
                f'{source.name}: the folder {empty[0]} in {folder.root} holds no images; add some, or remove it')
    if has_soft_labels(source):
        return
    counts, names = torch.bincount(all_labels(source), minlength=source.num_classes), class_names(source)
    if int((counts > 0).sum()) == 1:
        raise ValueError(
            f'{source.name}: all {len(source)} images are of one class, {_named(int(counts.argmax()), names)}; '
            f'expected at least two; check the labels, or the folders')
    if empty := (counts == 0).nonzero()[:, 0].tolist():
        raise ValueError(
            f'{source.name}: there is no image of class {_listed([_named(number, names) for number in empty])}; '
            f'add images, or correct num_classes={source.num_classes}')


def _named(number: int, names: Sequence[str] | None) -> str:
    return str(number) if names is None else f'{names[number]} (number {number})'


def _listed(names: Sequence[str]) -> str:
    return ', '.join(names[:5]) + (f' … ({len(names)} in all)' if len(names) > 5 else '')


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _keys(own: Sequence[str], names: Sequence[str]) -> tuple[list[Hashable], dict[Hashable, int]]:
    """Keys to compare names by, and class numbers by key: as numbers, or as text, first with composed letters."""
    composed: Callable[[str], Hashable] = partial(unicodedata.normalize, 'NFC')
    for key in (int if all(map(_is_number, (*own, *names))) else composed, composed, str):
        keys, known = [key(name) for name in own], {key(name): number for number, name in enumerate(names)}
        if len(set(keys)) == len(own) and len(known) == len(names):  # no two names are one
            break
    return keys, known


def _renumbered(labels: Tensor, table: Tensor, num_classes: int) -> Tensor:
    table = table.to(labels.device)
    if labels.ndim == 1:
        return table[labels]
    return labels.new_zeros(len(labels), num_classes).index_copy(1, table, labels)
