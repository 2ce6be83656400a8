"""Data sets by name, split into training, validation and test images."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from timm_paf.data.archives import open_archives
from timm_paf.data.arrays import ImageSource, LabelledImages, check_compatible, collect, has_soft_labels
from timm_paf.data.classes import all_labels, check_classes, class_names, hard, match_classes, names_of_classes
from timm_paf.data.decoded import DecodedImages, Decoding, folder_images
from timm_paf.data.digits import digits_splits
from timm_paf.data.errors import BadArchive, errors_on_opening, first_line
from timm_paf.data.folders import is_hidden
from timm_paf.data.order import IndexPermutation
from timm_paf.data.report import source_notes
from timm_paf.data.splits import ImagesWithout, SelectedImages, held_out
from timm_paf.data.stored import Progress
from timm_paf.data.streamed import READ_TOGETHER, StreamedImages

IN_MEMORY = 1 << 28  # bytes of a validation or test split up to which it is kept in memory
_ARRAYS = {'torch/cifar10': 'CIFAR10', 'torch/cifar100': 'CIFAR100'}
_ARCHIVES = ('.npz', '.npy', '.bin')  # reported as missing files, not as unknown names
_FOLDERS = ('folder', 'image_folder', 'torch/folder', 'torch/image_folder')
_SYNONYMS = (('train', 'training'), ('val', 'valid', 'validation', 'eval', 'evaluation'))  # as in timm
_STREAMS = ('hfids', 'wds', 'tfds')
_BY_TIMM = ('torch', 'hfds', *_STREAMS)
_CHUNK = 256
_GIVE_DATA_DIR = 'give data_dir, the folder of the data set or of its download'


class DataSplits(NamedTuple):
    """The three disjoint splits of a data set, from `open_dataset`."""

    train: ImageSource
    val: ImageSource  # for the choice of a checkpoint
    test: ImageSource


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """Options of `open_dataset`; most of them apply to some kinds of data sets only.

    Args:
        data_dir: Folder of the data set, or of timm's cache for it.
        download: Whether to download missing files, if the data set supports it.
        num_classes: Number of classes; required for archives without class names and for streams.
        test_data: Archives with the test images, if the data set is an archive.
        test_labels: Labels of `test_data`, if that is a `.npy` or `.bin` whose name does not show them.
        val_size: Number of training images held out for validation, see `held_out`; the digits have a fixed split
            instead.
        split_seed: Seed of the train/validation split. It is not the seed of a run, so that runs are compared on the
            same images.
        train_split: Name of the training split.
        val_split: Name of a validation split; if None, `val_size` training images are held out.
        test_split: Name of the test split, 'validation' in many data sets.
        input_key: Column of the images, as in timm; if None, 'image' in Hugging Face data sets.
        target_key: Column of the labels, as in timm; if None, 'label' in Hugging Face data sets.
        decoding: How image files are decoded.
        progress: Called as progress(what, done, total) while an archive is unpacked.
        notify: Called with each line about files that are left out.
    """

    data_dir: str | os.PathLike[str] | None = None
    download: bool = False
    num_classes: int | None = None
    test_data: Sequence[str | os.PathLike[str]] = ()
    test_labels: str | os.PathLike[str] | None = None
    val_size: int | None = None
    split_seed: int = 0
    train_split: str = 'train'
    val_split: str | None = None
    test_split: str = 'validation'
    input_key: str | None = None
    target_key: str | None = None
    decoding: Decoding = field(default_factory=Decoding)
    progress: Progress | None = None
    notify: Callable[[str], None] | None = None


def open_dataset(name: str, options: DatasetOptions | None = None) -> DataSplits:
    """Open a data set by its name.

    - `digits`: embedded, 8x8, with a fixed split.
    - `torch/cifar10`, `torch/cifar100`: from torchvision, as arrays in memory.
    - `folder`: image files in one sub-folder per class (`ImageFolder`); `hfds/NAME`, `torch/NAME`: as timm names them.
      They are decoded when they are needed (`DecodedImages`).
    - `wds/NAME`, `hfids/NAME`, `tfds/NAME`: streams, read from front to back (`StreamedImages`); they need `val_split`.
    - the path of an archive that `open_archive` reads, with `test_data`.

    Classes of the other splits have the numbers that the training split gives to their names. Validation and test
    images stay as they are stored, 8-bit for image files. They are `LabelledImages` if they take at most 256 MiB, else
    a source that reads them when they are asked for. Test images are in the order of the data set for CIFAR and the
    digits, otherwise in a fixed pseudo-random order, so that the first n of them are a fair sample.

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
        if name in _FOLDERS or ('/' in name and name.partition('/')[0] in _BY_TIMM):
            return (_streams if name.partition('/')[0] in _STREAMS else _files)(name, options)
        if Path(name).exists() or name.endswith(_ARCHIVES):
            return _archive(name, options)
    raise ValueError(
        "there is no such data set; expected digits, torch/cifar10, torch/cifar100, folder, another of timm's "
        '(torch/…, hfds/…, wds/…) or an archive')


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
        hint = (f"; for a folder with image files, the data set is 'folder', and data_dir is {name}"
                if Path(name).is_dir() else '')
        raise ValueError(f'{name}: an archive holds training images; give test_data, an archive of test images{hint}')
    shared: dict[str, Any] = dict(
        channels=options.decoding.channels, progress=options.progress, decoding=options.decoding)
    source = open_archives([name], num_classes=options.num_classes, **shared)
    resized = options.decoding if isinstance(source, DecodedImages) and source.decoding.crop_pct else None
    shared['decoding'] = replace(resized, size=source.image_shape[1:]) if resized else None  # else all have one size
    test = open_archives(
        options.test_data, num_classes=source.num_classes, class_names=class_names(source), labels=options.test_labels,
        **shared)
    check_compatible(source, test)
    _tell(options, source, test)
    train, val = _with_validation(source, Path(name).name, options)
    return DataSplits(train, val, _measured(test, _test_order(test), name=test.name))


def _streams(name: str, options: DatasetOptions) -> DataSplits:
    if options.val_split is None or options.num_classes is None:
        raise ValueError(
            f'{name}: images of a stream cannot be held out by index, and its classes are unknown; give val_split, the '
            f'name of a split without training images, and num_classes')
    train: Any = None
    measured = []
    for split in (options.train_split, options.val_split, options.test_split):
        settings: dict[str, Any] = dict(batch_size=READ_TOGETHER, seed=options.split_seed)
        source = StreamedImages(
            _create(name, split, options, is_training=train is None, **settings), name=f'{name}/{split}',
            num_classes=options.num_classes, decoding=options.decoding)
        if train is not None:
            _not_shared(source.dataset)
        source = source.fitted(_not_shared(_create(name, split, options, **settings)), like=train)
        train = source if train is None else train
        measured.append(source)
    val, test = (
        match_classes(part.loaded(name=f'{name}/{kind}'), train.class_names, num_classes=train.num_classes)
        for part, kind in zip(measured[1:], ('val', 'test'), strict=True))
    return DataSplits(train, val, test)


def _not_shared(dataset: Any) -> Any:
    """The stream, read whole by every process: timm's readers take a share, but evaluation shares images by itself."""
    dataset.reader.dist_rank, dataset.reader.dist_num_replicas = 0, 1
    return dataset


def _files(name: str, options: DatasetOptions) -> DataSplits:
    train = _decoded(name, options.train_split, options).opened()
    check_classes(train)
    if options.num_classes not in (None, train.num_classes):
        raise ValueError(
            f'{train.name}: has {train.num_classes} classes, but num_classes is {options.num_classes}; leave it out')
    _tell(options, train)

    def measured(split: str, kind: str, indices: Any = None) -> ImageSource:
        source = match_classes(
            _decoded(name, split, options), train.class_names, num_classes=train.num_classes).opened(like=train)
        _tell(options, source)
        return _measured(
            source, torch.arange(len(source)) if indices is None else indices(source), name=f'{name}/{kind}')

    test = measured(options.test_split, 'test', _test_order)
    if options.val_split is not None:
        return DataSplits(train, measured(options.val_split, 'val'), test)
    return DataSplits(*_with_validation(train, name, options), test)


def _decoded(name: str, split: str, options: DatasetOptions) -> DecodedImages:
    title, root = f'{name}/{split}', Path(options.data_dir or '')
    if name in _FOLDERS:
        if options.data_dir is None:
            raise BadArchive(f'{name}: {_GIVE_DATA_DIR}')
        folder = _split_folder(root, split)
        if split == options.test_split and folder == _split_folder(root, options.train_split):
            raise BadArchive(f'{folder}: is named for training and for test; name two splits')
        return folder_images(folder, decoding=options.decoding, name=title)
    dataset = _create(name, split, options)
    reader = getattr(dataset, 'reader', dataset)
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
        dataset, name=title, num_classes=num_classes, decoding=options.decoding,
        labels=torch.as_tensor(labels, dtype=torch.int64), class_names=names)


def _split_folder(root: Path, split: str) -> Path:
    """The folder of a split, which may have another of timm's names for it."""
    same = next((names for names in _SYNONYMS if split in names), ())
    for folder in (split, *same):
        if (root / folder).is_dir():
            return root / folder
    if not root.is_dir():
        raise FileNotFoundError(
            f'{root}: there is no such folder; check data_dir{", or unpack the file" if root.exists() else ""}')
    there = sorted(entry.name for entry in root.glob('*') if entry.is_dir() and not is_hidden(entry.name))
    # timm opens the whole tree, and training would see the test images
    raise FileNotFoundError(
        f'{root}: no folder {split!r} in it, but {", ".join(there[:5]) or "nothing"}; name the splits with train_split '
        f'and test_split')


def _create(name: str, split: str, options: DatasetOptions, **extra: Any) -> Any:
    from timm.data import create_dataset

    kind = name.partition('/')[0]
    if kind != 'torch':
        # images are converted by the rules for all files; tfds decodes by itself
        extra['input_img_mode'] = options.decoding.mode if kind == 'tfds' else ''
        extra |= {key: value for key in ('input_key', 'target_key') if (value := getattr(options, key)) is not None}
    with _opening(name, options) as root:
        if kind == 'hfds':
            _check_columns(name, root, split, options)
        return create_dataset(name, root, split=split, download=options.download, **extra)


def _check_columns(name: str, root: str | None, split: str, options: DatasetOptions) -> None:
    """Raise ValueError if a Hugging Face data set does not have the columns."""
    import datasets

    columns = datasets.load_dataset(name.partition('/')[2], split=split, cache_dir=root).column_names
    for key, column in ('input_key', options.input_key or 'image'), ('target_key', options.target_key or 'label'):
        if missing := [part for part in column.split(',') if part.split('.')[0] not in columns]:
            raise BadArchive(
                f'{name}: no column {missing[0]!r}, but {", ".join(columns)}; choose one with {key}')


def _tell(options: DatasetOptions, *sources: ImageSource) -> None:
    if options.notify is not None:
        for line in dict.fromkeys(line for source in sources for line in source_notes(source)):
            options.notify(line)


def _test_order(test: ImageSource) -> Tensor:
    return IndexPermutation(len(test), 'test order')(torch.arange(len(test)))


def _with_validation(source: Any, name: str, options: DatasetOptions) -> tuple[Any, ImageSource]:
    return hold_out(source, size=options.val_size, seed=options.split_seed, name=name)


def hold_out(source: Any, *, size: int | None, seed: int, name: str) -> tuple[Any, ImageSource]:
    """Training images, and `held_out` images for validation, of one source; they are called name/train and name/val.

    Raises ValueError if a class has no images, or `size` is out of range.
    """
    check_classes(source)
    chosen = held_out(all_labels(source), size, seed=seed)
    val = _measured(source, chosen, name=f'{name}/val')
    copied = isinstance(source, LabelledImages) and source.images.nbytes > IN_MEMORY
    if copied or not hasattr(source, 'subset'):
        return ImagesWithout(source, chosen, name=f'{name}/train'), val
    left = torch.ones(len(source), dtype=torch.bool)
    left[chosen] = False
    return source.subset(left.nonzero()[:, 0], name=f'{name}/train'), val


def _measured(source: Any, indices: Tensor, *, name: str) -> ImageSource:
    """Images for evaluation, with class numbers as labels, which accuracy needs: in memory if they are small."""
    images, _ = source.take(indices[:1])
    if images.nbytes * len(indices) > IN_MEMORY:
        return source.subset(indices, name=name) if hasattr(source, 'subset') and not has_soft_labels(source) else (
            SelectedImages(source, indices, name=name))
    batches = (source.take(some) for some in indices.split(_CHUNK))
    return collect(
        ((images, hard(labels)) for images, labels in batches), num_classes=source.num_classes, name=name,
        class_names=class_names(source))


@contextmanager
def _opening(name: str, options: DatasetOptions) -> Iterator[str | None]:
    """The folder of a data set; the libraries' many kinds of errors become two, with messages of one line."""
    if options.data_dir is None and not name.startswith('hfds/'):  # Hugging Face has a folder for downloads
        raise ValueError(f'{name}: {_GIVE_DATA_DIR}')
    root = None if options.data_dir is None else os.fspath(options.data_dir)
    try:
        yield root
    except BadArchive:
        raise
    except ImportError as error:
        raise ValueError(f'{name}: needs a package that is not installed ({first_line(error)[:200]})') from error
    except (RuntimeError, AssertionError, OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f'{name}: cannot be opened{f" in {root}" if root else ""} ({first_line(error)[:200]}); check data_dir, or '
            'allow the download'
        ) from error
