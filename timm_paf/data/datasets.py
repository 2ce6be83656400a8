"""Data sets by name, split into training, validation and test images."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from timm_paf.data.archives import open_archives
from timm_paf.data.arrays import ImageSource, LabelledImages, collect, has_soft_labels
from timm_paf.data.classes import all_labels, check_classes, class_names, hard, match_classes, names_of_classes
from timm_paf.data.decoded import READ_TOGETHER, DecodedImages, Decoding, StreamedImages
from timm_paf.data.digits import digits_splits
from timm_paf.data.errors import errors_on_opening, first_line
from timm_paf.data.order import IndexPermutation
from timm_paf.data.splits import held_out
from timm_paf.data.stored import Progress

_ARRAYS = {'torch/cifar10': 'CIFAR10', 'torch/cifar100': 'CIFAR100'}
_ARCHIVES = ('.npz', '.npy', '.bin')  # reported as missing files, not as unknown names
_STREAMS = ('hfids', 'wds', 'tfds')
_BY_TIMM = ('torch', 'hfds', *_STREAMS)
_CHUNK = 4096


class DataSplits(NamedTuple):
    """The three disjoint splits of a data set, from `open_dataset`."""

    train: ImageSource
    val: LabelledImages  # for the choice of a checkpoint
    test: LabelledImages


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """Options of `open_dataset`; most of them apply to some kinds of data sets only.

    Args:
        data_dir: Folder of the data set, or of timm's cache for it.
        download: Whether to download missing files, if the data set supports it.
        num_classes: Number of classes; required for archives and streams.
        test_data: Archives with the test images, if the data set is an archive.
        val_size: Number of training images held out for validation; the digits have a fixed split instead.
        split_seed: Seed of the train/validation split. It is not the seed of a run, so that runs are compared on the
            same images.
        train_split: Name of the training split.
        val_split: Name of a validation split; if None, `val_size` training images are held out.
        test_split: Name of the test split, 'validation' in many data sets.
        decoding: How image files are decoded.
        progress: Called as progress(what, done, total) while an archive is unpacked.
    """

    data_dir: str | os.PathLike[str] | None = None
    download: bool = False
    num_classes: int | None = None
    test_data: Sequence[str | os.PathLike[str]] = ()
    val_size: int = 1024
    split_seed: int = 0
    train_split: str = 'train'
    val_split: str | None = None
    test_split: str = 'validation'
    decoding: Decoding = field(default_factory=Decoding)
    progress: Progress | None = None


def open_dataset(name: str, options: DatasetOptions | None = None) -> DataSplits:
    """Open a data set by its name.

    - `digits`: embedded, 8x8, with a fixed split.
    - `torch/cifar10`, `torch/cifar100`: from torchvision, as arrays in memory.
    - `folder`: image files in one sub-folder per class; `hfds/NAME`, `torch/NAME`: as timm names them. They are decoded
      during training (`DecodedImages`).
    - `wds/NAME`, `hfids/NAME`, `tfds/NAME`: streams, read from front to back (`StreamedImages`); they need `val_split`.
    - the path of an archive that `open_archive` reads, with `num_classes` and `test_data`.

    Test images are in the order of the data set for CIFAR and the digits. Otherwise they are in a fixed pseudo-random
    order, so that the first n of them are a fair sample.

    Raises:
        ValueError: If there is no such data set, or it is not as expected.
        FileNotFoundError: If its files do not exist.
    """
    options = options or DatasetOptions()
    with errors_on_opening():
        if name == 'digits':
            return DataSplits(*digits_splits())
        if name in _ARRAYS:
            return _cifar(name, options)
        if name == 'folder' or ('/' in name and name.partition('/')[0] in _BY_TIMM):
            return _timm(name, options)
        if Path(name).exists() or name.endswith(_ARCHIVES):
            return _archive(name, options)
    raise ValueError(
        "there is no such data set; expected digits, torch/cifar10, torch/cifar100, folder, another of timm's "
        '(torch/…, hfds/…, wds/…) or an archive')


class ImagesWithout:
    """The images of a source without those at `left_out` (M,) int64, each once; only these take memory."""

    def __init__(self, source: ImageSource, left_out: Tensor, *, name: str) -> None:
        self.source, self.name, self.soft = source, name, has_soft_labels(source)
        self.num_classes, self.image_shape = source.num_classes, source.image_shape
        self.class_names = class_names(source)
        # image i of the rest comes after every left-out j with j - (number left out before j) <= i
        self._thresholds = left_out.sort().values - torch.arange(len(left_out))

    def __len__(self) -> int:
        """Number of remaining images."""
        return len(self.source) - len(self._thresholds)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """As the source's, for indices (B,) int64 in 0..len-1 of the remaining images."""
        indices = indices.cpu()
        return self.source.take(indices + torch.bucketize(indices, self._thresholds, right=True))


def _cifar(name: str, options: DatasetOptions) -> DataSplits:
    import torchvision.datasets

    parts = {}
    for part in ('train', 'test'):
        with _opening(name, options) as root:
            raw = getattr(torchvision.datasets, _ARRAYS[name])(root, train=part == 'train', download=options.download)
        images = torch.from_numpy(raw.data).permute(0, 3, 1, 2)
        parts[part] = LabelledImages(
            images, torch.tensor(raw.targets), len(raw.classes), f'{name}/{part}', names_of_classes(raw.classes))
    return DataSplits(*_with_validation(parts['train'], name, options), parts['test'])


def _archive(name: str, options: DatasetOptions) -> DataSplits:
    if not options.test_data:
        raise ValueError(f'{name}: an archive holds training images; give test_data, an archive with test images')
    shared: dict[str, Any] = dict(channels=options.decoding.channels, progress=options.progress)
    source = open_archives([name], num_classes=options.num_classes, **shared)
    test = open_archives(
        options.test_data, num_classes=source.num_classes, class_names=class_names(source), **shared)
    train, val = _with_validation(source, Path(name).name, options)
    return DataSplits(train, val, _in_memory(test, _test_order(test), name=test.name))


def _timm(name: str, options: DatasetOptions) -> DataSplits:
    if name.partition('/')[0] in _STREAMS:
        if options.val_split is None or options.num_classes is None:
            raise ValueError(
                f'{name}: images of a stream cannot be held out by index, and its classes are unknown; give val_split, '
                f'the name of a split without training images, and num_classes')
        train, *measured = (
            StreamedImages(
                _create(
                    name, split, options, is_training=number == 0, batch_size=READ_TOGETHER, seed=options.split_seed),
                name=f'{name}/{split}', num_classes=options.num_classes, decoding=options.decoding)
            for number, split in enumerate((options.train_split, options.val_split, options.test_split)))
        val, test = (
            match_classes(part.loaded(name=f'{name}/{kind}'), train.class_names, num_classes=train.num_classes)
            for part, kind in zip(measured, ('val', 'test'), strict=True))
        return DataSplits(train, val, test)
    train_images = _decoded(name, options.train_split, options)
    names: dict[str, Any] = dict(num_classes=train_images.num_classes)
    test_images = match_classes(_decoded(name, options.test_split, options), train_images.class_names, **names)
    test = test_images.subset(_test_order(test_images), name=f'{name}/test').loaded(name=f'{name}/test')
    if options.val_split is not None:
        check_classes(train_images)
        val = match_classes(_decoded(name, options.val_split, options), train_images.class_names, **names).loaded(
            name=f'{name}/val')
        return DataSplits(train_images, val, test)
    return DataSplits(*_with_validation(train_images, name, options), test)


def _decoded(name: str, split: str, options: DatasetOptions) -> DecodedImages:
    dataset = _create(name, split, options)
    reader = getattr(dataset, 'reader', dataset)
    if name == 'folder' and Path(reader.root) == Path(options.data_dir or ''):
        # timm opens the whole folder if it has none for the split, and training would see the test images
        raise FileNotFoundError(
            f'{reader.root}: no folder {split!r} in it; name the splits with train_split and test_split')
    if hasattr(reader, 'targets'):
        labels = reader.targets
    elif hasattr(reader, 'samples'):
        labels = [sample[1] for sample in reader.samples]
    elif hasattr(reader, 'iter_targets'):
        labels = list(reader.iter_targets())
    else:
        raise ValueError(f'{name}: labels of this data set cannot be read without its images; convert it to an archive')
    names = names_of_classes(getattr(reader, 'class_to_idx', None) or getattr(reader, 'classes', None))
    num_classes = options.num_classes if names is None else len(names)
    if not num_classes:
        raise ValueError(f'{name}: the number of classes of this data set is unknown; give num_classes')
    return DecodedImages(
        dataset, name=f'{name}/{split}', num_classes=num_classes, decoding=options.decoding,
        labels=torch.as_tensor(labels, dtype=torch.int64), class_names=names)


def _create(name: str, split: str, options: DatasetOptions, **extra: Any) -> Any:
    from timm.data import create_dataset

    if not name.startswith('torch/'):
        extra['input_img_mode'] = options.decoding.mode
    with _opening(name, options) as root:
        return create_dataset(
            '' if name == 'folder' else name, root, split=split, download=options.download, **extra)


def _test_order(test: ImageSource) -> Tensor:
    return IndexPermutation(len(test), 'test order')(torch.arange(len(test)))


def _with_validation(source: Any, name: str, options: DatasetOptions) -> tuple[Any, LabelledImages]:
    check_classes(source)
    chosen = held_out(all_labels(source), options.val_size, seed=options.split_seed)
    val = _in_memory(source, chosen, name=f'{name}/val')
    if not hasattr(source, 'subset'):
        return ImagesWithout(source, chosen, name=f'{name}/train'), val
    left = torch.ones(len(source), dtype=torch.bool)
    left[chosen] = False
    return source.subset(left.nonzero()[:, 0], name=f'{name}/train'), val


def _in_memory(source: ImageSource, indices: Tensor, *, name: str) -> LabelledImages:
    """Images in memory, with class numbers as labels, as accuracy needs them."""
    batches = (source.take(some) for some in indices.split(_CHUNK))
    return collect(
        ((images, hard(labels)) for images, labels in batches), num_classes=source.num_classes, name=name,
        class_names=class_names(source))


@contextmanager
def _opening(name: str, options: DatasetOptions) -> Iterator[str]:
    """The folder of a data set; the libraries' many kinds of errors become two, with messages of one line."""
    if options.data_dir is None:
        raise ValueError(f'{name}: give data_dir, the folder of the data set or of its download')
    root = os.fspath(options.data_dir)
    try:
        yield root
    except ImportError as error:
        raise ValueError(f'{name}: needs a package that is not installed ({first_line(error)[:200]})') from error
    except (RuntimeError, AssertionError, OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f'{name}: cannot be opened in {root} ({first_line(error)[:200]}); check data_dir, or allow the download'
        ) from error
