"""Data sets by name: training images, and test images and a validation split that training never sees."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from timm_paf.data.archives import open_archives
from timm_paf.data.arrays import ConcatenatedImages, ImageSource, LabelledImages, has_soft_labels
from timm_paf.data.decoded import READ_TOGETHER, DecodedImages, Decoding, StreamedImages
from timm_paf.data.digits import digits_splits
from timm_paf.data.disk import DiskImages
from timm_paf.data.errors import DataChanged, first_line
from timm_paf.data.folders import FolderImages
from timm_paf.data.order import IndexPermutation
from timm_paf.data.splits import held_out
from timm_paf.data.stored import Progress

_ARRAYS = {'torch/cifar10': 'CIFAR10', 'torch/cifar100': 'CIFAR100'}
_ARCHIVES = ('.npz', '.npy', '.bin')  # said to be missing files, not unknown names
_STREAMS = ('hfids', 'wds', 'tfds')
_BY_TIMM = ('torch', 'hfds', *_STREAMS)
_KNOWN = "digits, torch/cifar10, torch/cifar100, folder, another of timm's (torch/…, hfds/…, wds/…) or an archive"
_CHUNK = 4096


class DataSplits(NamedTuple):
    """The three disjoint parts of a data set; `open_dataset` makes them.

    Args:
        train: images to train on.
        val: images taken from the training images, to choose checkpoints by.
        test: images to measure the result on.
    """

    train: ImageSource
    val: LabelledImages
    test: LabelledImages


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """What `open_dataset` needs besides a name; most of it concerns some kinds of data sets only.

    Args:
        data_dir: folder of the data set, or of timm's cache for it.
        download: fetch what is missing, where the data set can.
        num_classes: number of classes; needed where the data set does not tell (archives).
        test_data: archives with the test images, where the data set is an archive.
        val_size: how many training images are held out for validation. The digits have a fixed split of their own.
        split_seed: decides which ones; not the seed of a run, so that runs are compared on the same images.
        train_split: name of the training split.
        val_split: name of a validation split, held out from training; if None, `val_size` training images are.
        test_split: name of the test split; many data sets call theirs 'validation'.
        decoding: for images in files.
        progress: called as progress(what, done, in all) while an archive is unpacked.
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
    - `torch/cifar10`, `torch/cifar100`: torchvision's, as arrays in memory.
    - `folder`: a folder of images in one sub-folder a class, and `hfds/NAME`, `torch/NAME` as timm names them: decoded
      while training (`DecodedImages`).
    - `wds/NAME`, `hfids/NAME`, `tfds/NAME`: read from front to back (`StreamedImages`); they need `val_split`.
    - the path of an archive that `open_archive` reads, with `num_classes` and `test_data`.

    Test images come in the order of the data set for CIFAR and the digits and in a fixed pseudo-random order otherwise,
    so that the first n of them are a fair sample.

    Args:
        name: see above.
        options: the defaults if None.

    Raises:
        ValueError: if there is no such data set, or it is not as expected.
        FileNotFoundError: if its files are not there.
    """
    options = options or DatasetOptions()
    try:
        if name == 'digits':
            return DataSplits(*digits_splits())
        if name in _ARRAYS:
            return _cifar(name, options)
        if name == 'folder' or ('/' in name and name.partition('/')[0] in _BY_TIMM):
            return _timm(name, options)
        if Path(name).exists() or name.endswith(_ARCHIVES):
            return _archive(name, options)
    except DataChanged as error:  # nothing has started yet: to the user this is a data set that is not as expected
        raise ValueError(str(error)) from error
    raise ValueError(f'there is no such data set; expected {_KNOWN}')


def all_labels(source: ImageSource) -> Tensor:
    """Class numbers (N,) int64 of all images of a source; of soft labels, the likeliest."""
    if isinstance(source, ConcatenatedImages):
        return torch.cat([all_labels(part) for part in source.parts])
    if isinstance(source, DiskImages | FolderImages):
        return source.class_numbers()
    labels = getattr(source, 'labels', None)
    if labels is None:
        labels = torch.cat([source.take(indices)[1] for indices in torch.arange(len(source)).split(_CHUNK)])
    labels = torch.as_tensor(labels)
    return labels.long() if labels.ndim == 1 else labels.argmax(1)


class ImagesWithout:
    """All images of a source but some; nothing is copied, and memory depends on the number left out only.

    Args:
        source: the images.
        left_out: (M,) int64 indices into it, each once, M less than its length.
        name: short name for messages.
    """

    def __init__(self, source: ImageSource, left_out: Tensor, *, name: str) -> None:
        self.source = source
        self.name = name
        self.num_classes = source.num_classes
        self.image_shape = source.image_shape
        self.soft = has_soft_labels(source)
        # image i of what is left has in front of it every left-out j with j - (number left out before j) <= i
        self._thresholds = left_out.sort().values - torch.arange(len(left_out))

    def __len__(self) -> int:
        """Number of images that are left."""
        return len(self.source) - len(self._thresholds)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """As the source's, for indices (B,) int64 in 0..len-1 of what is left."""
        indices = indices.cpu()
        return self.source.take(indices + torch.bucketize(indices, self._thresholds, right=True))


def _cifar(name: str, options: DatasetOptions) -> DataSplits:
    import torchvision.datasets

    root = _data_dir(name, options)

    def part(train: bool) -> LabelledImages:
        kind = getattr(torchvision.datasets, _ARRAYS[name])
        raw = _opened(name, root, lambda: kind(root, train=train, download=options.download))
        images = torch.from_numpy(raw.data).permute(0, 3, 1, 2)
        part_name = f'{name}/{"train" if train else "test"}'
        return LabelledImages(images, torch.tensor(raw.targets), len(raw.classes), part_name)

    train, val = _with_validation(part(True), name, options)
    return DataSplits(train, val, part(False))


def _archive(name: str, options: DatasetOptions) -> DataSplits:
    if options.num_classes is None:
        raise ValueError(f'{name}: an archive does not say how many classes there are; give num_classes')
    if not options.test_data:
        raise ValueError(f'{name}: an archive holds training images; give test_data, an archive with test images')
    source, test = (
        open_archives(
            paths, num_classes=options.num_classes, channels=options.decoding.channels, progress=options.progress)
        for paths in ([name], options.test_data))
    train, val = _with_validation(source, Path(name).name, options)
    order = IndexPermutation(len(test), 'test order')(torch.arange(len(test)))
    return DataSplits(train, val, _in_memory(test, order, name=test.name))


def _timm(name: str, options: DatasetOptions) -> DataSplits:
    root = _data_dir(name, options)
    if name.partition('/')[0] in _STREAMS:
        if options.val_split is None:
            raise ValueError(
                f'{name}: images of a stream cannot be held out by index; give val_split, the name of a split that '
                f'training does not use')
        parts = [
            _streamed(name, root, split, options, training=number == 0)
            for number, split in enumerate((options.train_split, options.val_split, options.test_split))]
        val, test = (part.loaded(name=f'{name}/{kind}') for part, kind in zip(parts[1:], ('val', 'test'), strict=True))
        return DataSplits(parts[0], val, test)
    train_images, test_images = (_decoded(name, root, split, options) for split in (
        options.train_split, options.test_split))
    order = IndexPermutation(len(test_images), 'test order')(torch.arange(len(test_images)))
    test = test_images.subset(order, name=f'{name}/test').loaded(name=f'{name}/test')
    if options.val_split is not None:
        val = _decoded(name, root, options.val_split, options).loaded(name=f'{name}/val')
        return DataSplits(train_images, val, test)
    train, val = _with_validation(train_images, name, options)
    return DataSplits(train, val, test)


def _decoded(name: str, root: str, split: str, options: DatasetOptions) -> DecodedImages:
    dataset = _create(name, root, split, options)
    if name == 'folder' and Path(dataset.reader.root) == Path(root):
        # timm takes the whole folder if it finds none for the split, and training would see the test images
        raise FileNotFoundError(
            f'{root}: there is no folder {split!r} in it; name the splits with train_split and test_split')
    labels, found = _labels_and_classes(dataset, name)
    num_classes = options.num_classes or found
    if not num_classes:
        raise ValueError(f'{name}: the data set does not say how many classes there are; give num_classes')
    return DecodedImages(
        dataset, name=f'{name}/{split}', num_classes=num_classes, labels=labels, decoding=options.decoding)


def _streamed(name: str, root: str, split: str, options: DatasetOptions, *, training: bool) -> StreamedImages:
    if options.num_classes is None:
        raise ValueError(f'{name}: a stream does not say how many classes there are; give num_classes')
    dataset = _create(
        name, root, split, options, is_training=training, batch_size=READ_TOGETHER, seed=options.split_seed)
    return StreamedImages(
        dataset, name=f'{name}/{split}', num_classes=options.num_classes, decoding=options.decoding)


def _create(name: str, root: str, split: str, options: DatasetOptions, **extra: Any) -> Any:
    from timm.data import create_dataset

    own = '' if name == 'folder' else name
    if not name.startswith('torch/'):
        extra['input_img_mode'] = options.decoding.mode
    return _opened(name, root, lambda: create_dataset(own, root, split=split, download=options.download, **extra))


def _labels_and_classes(dataset: Any, name: str) -> tuple[Tensor, int]:
    """Labels (N,) of a map-style data set, and the number of classes or 0 if it does not say."""
    reader = getattr(dataset, 'reader', dataset)
    if hasattr(reader, 'targets'):
        labels = reader.targets
    elif hasattr(reader, 'samples'):
        labels = [sample[1] for sample in reader.samples]
    elif hasattr(reader, 'iter_targets'):
        labels = list(reader.iter_targets())
    else:
        raise ValueError(f'{name}: labels of this data set cannot be read without its images; make an archive of it')
    classes = getattr(reader, 'class_to_idx', None) or getattr(reader, 'classes', None) or ()
    return torch.as_tensor(labels, dtype=torch.int64), len(classes)


def _with_validation(source: Any, name: str, options: DatasetOptions) -> tuple[Any, LabelledImages]:
    chosen = held_out(all_labels(source), options.val_size, seed=options.split_seed)
    val = _in_memory(source, chosen, name=f'{name}/val')
    if not hasattr(source, 'subset'):
        return ImagesWithout(source, chosen, name=f'{name}/train'), val
    left = torch.ones(len(source), dtype=torch.bool)
    left[chosen] = False
    return source.subset(left.nonzero()[:, 0], name=f'{name}/train'), val


def _in_memory(source: ImageSource, indices: Tensor, *, name: str) -> LabelledImages:
    """Some images in memory, with class numbers as labels: accuracy is about these."""
    parts = [source.take(some) for some in indices.split(_CHUNK)]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return LabelledImages(images, labels if labels.ndim == 1 else labels.argmax(1), source.num_classes, name)


def _data_dir(name: str, options: DatasetOptions) -> str:
    if options.data_dir is None:
        raise ValueError(f'{name}: give data_dir, the folder where the data set is or is to be downloaded to')
    return os.fspath(options.data_dir)


def _opened(name: str, root: str, make: Callable[[], Any]) -> Any:
    """What `make` opens; the libraries' many kinds of errors become two, told in one line."""
    try:
        return make()
    except ImportError as error:
        raise ValueError(f'{name}: needs a package that is not installed ({first_line(error)[:200]})') from error
    except (RuntimeError, AssertionError, OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f'{name}: cannot be opened in {root} ({first_line(error)[:200]}); check data_dir, or allow the download'
        ) from error
