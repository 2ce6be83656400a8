"""Images of a run: data sets by name, one's own arrays and data sets, synthetic archives, and the batches of them."""
import contextlib
import dataclasses
import glob
import re
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.transforms.functional import pil_to_tensor

from timm_paf._distributed import Processes
from timm_paf.data import (
    Augment,
    DataChanged,
    DatasetOptions,
    DataSplits,
    EvaluationImages,
    ImageSource,
    LabelledImages,
    MixedBatches,
    cached_synthetic_digits,
    check_classes,
    free_bytes,
    match_classes,
    names_of_classes,
    open_archives,
    place_on_device,
    sample_report,
    verify_archive,
)
from timm_paf.data import open_dataset as open_splits
from timm_paf.data.datasets import hold_out
from timm_paf.data.folders import own_channels, to_mode
from timm_paf.data.streamed import StreamedImages
from timm_paf.engine.classes import by_number, check_same_classes, match_training, names_difference
from timm_paf.engine.shared_config import DataConfig
from timm_paf.engine.train_config import TrainConfig

__all__ = [
    'DatasetImages', 'Images', 'as_source', 'memory_budget', 'open_dataset', 'open_training_data',
    'own_splits', 'source_lines']

Images: TypeAlias = ImageSource | tuple[Tensor | np.ndarray, Tensor | np.ndarray] | Dataset[Any]
"""Images with labels: a source, arrays (images, labels), or a map-style `torch.utils.data.Dataset` of pairs."""


def open_dataset(name: str, config: DataConfig | None = None, *, console: Console | None = None) -> DataSplits:
    """Train, validation and test split of a data set; the last two as `EvaluationImages`.

    Args:
        name: Name of the data set.
        config: Its place and its splits; the defaults if None.
        console: Shows a bar while an archive is unpacked.

    Raises:
        ValueError: If there is no such data set, or it is not as expected.
        FileNotFoundError: If its files are missing.
    """
    names = {field.name for field in dataclasses.fields(DatasetOptions)}
    try:
        with reading_bar(console) as progress:
            options = (config or DataConfig()).dataset_options(progress)
            if console is not None:
                options = dataclasses.replace(options, notify=lambda line: console.print(line, highlight=False))
            train, val, test = open_splits(name, options)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{_with_flags(str(error), names)} See --data-dir and --dataset-download.') from error
    except ValueError as error:
        raise ValueError(f'--dataset = {name!r}: {_with_flags(str(error), names)}') from error
    return DataSplits(train, EvaluationImages(val), EvaluationImages(test))


def _with_flags(text: str, names: Set[str]) -> str:
    """A sentence whose names of arguments, such as data_dir, are flags, such as --data-dir."""
    end = '' if text[-1:] in '.?' else '.'
    return re.sub(r'\b[a-z]+_[a-z]+\b', lambda m: f'--{m[0].replace("_", "-")}' if m[0] in names else m[0], text) + end


class DatasetImages:
    """A map-style `torch.utils.data.Dataset` as an image source; each batch reads its items when it needs them.

    Args:
        dataset: Gives pairs (image, label) for indices 0 to len - 1. An image is a tensor or array (C, H, W) in [0, 1]
            or uint8, or a PIL image; a label is a class number.
        num_classes: Number of classes, if `dataset.classes` does not name them; by default the largest label + 1.
        name: Name for messages.

    Raises:
        ValueError: If the data set is empty.
    """

    def __init__(self, dataset: Any, *, num_classes: int | None = None, name: str = 'own data') -> None:
        self.dataset, self.name = dataset, name
        if not len(dataset):
            raise ValueError(f'{name}: the data set is empty; expected at least one image.')
        # a data set that changes its labels has others than its `targets`
        labels = None if getattr(dataset, 'target_transform', None) else getattr(dataset, 'targets', None)
        if labels is None:
            labels = [int(dataset[index][1]) for index in range(len(dataset))]
        self.labels = torch.as_tensor(labels).long()
        self.class_names = dataset_names(dataset, name)
        self.num_classes = len(self.class_names or ()) or num_classes or int(self.labels.max()) + 1
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(f'{name}: labels from {low} to {high}; expected 0 to {self.num_classes - 1}.')
        _, channels, height, width = self.take(torch.zeros(1, dtype=torch.int64))[0].shape
        self.image_shape = channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W), uint8 or float32, and labels (B,) int64 at `indices` (B,)."""
        images, labels = [], []
        for index in indices.tolist():
            image, label = self.dataset[index]
            try:
                images.append(_pixels(image))
            except ValueError as error:
                raise DataChanged(f'{self.name}, image {index}: {error}') from error
            labels.append(int(label))
        return torch.stack(images), torch.tensor(labels)


def dataset_names(dataset: Any, name: str) -> tuple[str, ...] | None:
    """Class names of a map-style data set, of one that it is a part of, or of its parts, which must have the same."""
    if isinstance(dataset, Subset):
        return dataset_names(dataset.dataset, name)
    if isinstance(dataset, ConcatDataset):
        first, *others = (dataset_names(part, name) for part in dataset.datasets)
        for other in others:
            if first is not None and other is not None and (difference := names_difference(first, other)):
                raise ValueError(f'{name}: a part has other classes than the first one ({difference}); rename them, or '
                                 'give its labels the numbers of the first part.')
        return first
    # with a target_transform, labels are not the numbers of `classes`
    return None if getattr(dataset, 'target_transform', None) else names_of_classes(getattr(dataset, 'classes', None))


def _pixels(image: Any) -> Tensor:
    """Pixels (C, H, W) of a tensor, an array or a PIL image."""
    if isinstance(image, Tensor | np.ndarray):
        pixels = channels_first(torch.as_tensor(image))
        return pixels if pixels.dtype == torch.uint8 else pixels.float()
    return pil_to_tensor(to_mode(image, own_channels(image)))


def channels_first(pixels: Tensor) -> Tensor:
    """Pixels (…, C, H, W); as in archives, those whose last axis alone has 1 or 3 entries are (…, H, W, C)."""
    last = pixels.ndim > 2 and pixels.shape[-1] in (1, 3) and pixels.shape[-3] not in (1, 3)
    return pixels.movedim(-1, -3) if last else pixels


def as_source(images: Images, *, num_classes: int | None = None, name: str = 'own data') -> ImageSource:
    """One's own images as an image source.

    Args:
        images: An image source, arrays (images, labels), or a map-style data set. Arrays of images are
            (N, C, H, W), or (N, H, W, C) with 1 or 3 channels, uint8 or float in [0, 1]; labels are class numbers (N,)
            or probabilities (N, K).
        num_classes: Number of classes; by default as in the data, or the largest label + 1.
        name: Name for messages.

    Raises:
        ValueError: If images or labels are not as expected.
    """
    if isinstance(images, Dataset):
        return DatasetImages(images, num_classes=num_classes, name=name)
    if not isinstance(images, tuple):
        return images
    if len(images) != 2:
        raise ValueError(f'{name}: got a tuple of {len(images)}; expected (images, labels).')
    pixels, labels = (torch.as_tensor(values) for values in images)
    pixels = channels_first(pixels.float() if pixels.is_floating_point() else pixels)
    labels = labels.float() if labels.ndim == 2 else labels.long()
    classes = num_classes or (labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1)
    return LabelledImages(pixels, labels, classes, name)


def own_splits(
        train: Images, val: Images | None, test: Images | None, config: DataConfig,
) -> tuple[ImageSource, EvaluationImages, EvaluationImages | None]:
    """Splits of one's own images; without `val`, `config.val_size` training images are held out.

    Raises:
        ValueError: If the images are not as expected.
    """
    source = as_source(train, num_classes=config.num_classes or len(config.class_names), name='own images')
    if val is not None and (hasattr(source, 'labels') or hasattr(source, 'class_numbers')):  # reads no image
        check_classes(source)

    def measured(images: Images, name: str) -> EvaluationImages:
        return EvaluationImages(as_source(images, num_classes=source.num_classes, name=name))

    tested = None if test is None else measured(test, 'own test images')
    if val is not None:
        return source, measured(val, 'own validation images'), tested
    rest, held = hold_out(source, size=config.val_size, seed=config.split_seed, name=source.name)
    return rest, EvaluationImages(held), tested


def matched(images: EvaluationImages, names: Sequence[str], *, num_classes: int | None) -> EvaluationImages:
    """Images with the class numbers of these names, see `match_classes`."""
    source = match_classes(images.source, names or None, num_classes=num_classes)
    return images if source is images.source else EvaluationImages(source)


def open_training_data(
        config: TrainConfig, processes: Processes, console: Console, *, train: Images | None, val: Images | None,
        test: Images | None,
) -> tuple[MixedBatches, EvaluationImages, EvaluationImages | None, tuple[str, ...], list[str]]:
    """Images of `config.dataset` or of one's own, all with the class numbers of the training images.

    Returns:
        Batches for one process, validation images, test images, class names (empty if there are none), and lines about
        images whose classes are compared by number.

    Raises:
        ValueError: If data or settings are not as expected.
        FileNotFoundError: If files are missing.
    """
    with processes.patient() as patient, patient.rank_zero_first():  # reading may take long
        if train is None:
            named = open_dataset(config.dataset, config, console=console)
            classes = named.train.num_classes

            def own(images: Images) -> EvaluationImages:
                return EvaluationImages(as_source(images, num_classes=classes))

            opened: tuple[ImageSource, EvaluationImages, EvaluationImages | None] = (
                named.train, cast(EvaluationImages, named.val) if val is None else own(val),
                cast(EvaluationImages, named.test) if test is None else own(test))
        else:
            opened = own_splits(train, val, test, config)
        real, names = match_training(opened[0], config.class_names, num_classes=config.num_classes)
        checked, tested = opened[1:]
        checked = matched(checked, names, num_classes=real.num_classes)
        if tested is not None:
            tested = matched(tested, names, num_classes=real.num_classes)
        synthetic = open_synthetic(config, real, names, console) if config.synthetic_fraction else []
    check_same_classes(processes, names, real)
    others: dict[str, Any] = {'validation images': checked, 'test images': tested}
    others |= {f'synthetic images {source.name}': source for source in synthetic}
    lines = by_number(names, others, whose='the training split')
    if config.verify_data and processes.is_primary:
        every = [*([] if isinstance(real, StreamedImages) else [real]), *synthetic]
        if getattr(checked.source, 'source', None) is not getattr(real, 'source', real):  # else a part of the same file
            every.append(checked.source)
        if train is None and test is None and config.test_data:  # opened again: a copy in memory has no checksums
            every.append(open_archives(
                config.test_data, num_classes=real.num_classes, class_names=names or None, labels=config.test_labels,
                channels=config.in_chans, decoding=config.dataset_options().decoding))
        elif tested is not None:
            every.append(tested.source)
        for source in every:
            with console.status(f'checking {source.name}') as status:
                def progress(what: str, done: int, total: int, status: Status = status) -> None:
                    status.update(f'checking {what}: {done}/{total}')

                verify_archive(source, progress=progress)
    sources, budget = [real, *synthetic], memory_budget(config.data_on_device_budget, processes.device)
    if config.data_on_device != 'no':
        sources = place_on_device(
            sources, processes.device, budget=budget, required=config.data_on_device == 'yes')
    batches = MixedBatches(
        sources[0], sources[1:], batch_size=config.batch_size, synthetic_fraction=config.synthetic_fraction or 0.,
        seed=config.seed, synthetic_weights=config.synthetic_weights or None, real_augment=config.augment(),
        synthetic_augment=config.augment() if config.synthetic_augment == 'same' else Augment(),
        smoothing=config.smoothing, synthetic_smoothing=config.synthetic_smoothing, rank=processes.rank,
        world_size=processes.world_size, device=processes.device)
    return batches, checked, tested, names, lines


def open_synthetic(
        config: TrainConfig, real: ImageSource, names: Sequence[str], console: Console) -> list[ImageSource]:
    """The sources of synthetic images, with the classes and channels of the real ones.

    A path with * or ? names the parts of one source; 'generated' makes digits from the training split.
    Without `--synthetic-weights` all paths are one source.

    Raises:
        ValueError: If a path is no archive, or 'generated' comes with a data set other than the digits.
        FileNotFoundError: If a file is missing or a pattern matches none.
    """
    groups: list[list[str]] = []
    for path in config.synthetic:
        if path == 'generated':
            if config.dataset != 'digits':
                raise ValueError(
                    f'--synthetic generated makes digits, not {config.dataset}; make an archive with '
                    f'recipes/make_synthetic.py and give its path.')
            groups.append([str(cached_synthetic_digits(config.num_synthetic))])
        elif glob.has_magic(path) and not Path(path).exists():
            groups.append(sorted(glob.glob(path)))
            if not groups[-1]:
                raise FileNotFoundError(f'--synthetic {path}: no file fits this pattern.')
        else:
            groups.append([path])
    if groups and not config.synthetic_weights:
        groups = [[path for group in groups for path in group]]
    with reading_bar(console) as progress:
        return [
            open_archives(
                group, num_classes=real.num_classes, class_names=names or None, channels=real.image_shape[0],
                progress=progress)
            for group in groups]


def memory_budget(text: str, device: torch.device) -> int:
    """Bytes of '25%' of the device's free memory, or of '4' GiB.

    Raises:
        ValueError: If the text is neither.
    """
    match = re.fullmatch(r'(\d+\.?\d*|\.\d+)(%?)', text)
    if not match or (match[2] and float(match[1]) > 100):
        raise ValueError(
            f'--data-on-device-budget = {text!r}: expected a number of GiB such as 4, or a share of the free memory '
            f'such as 25%.')
    return int(float(match[1]) / 100 * free_bytes(device)) if match[2] else int(float(match[1]) * 2**30)


@contextlib.contextmanager
def reading_bar(console: Console | None) -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar while archives are unpacked, on a terminal; yields the `progress` argument of `open_archive`."""
    if console is None or not console.is_terminal:
        yield None
        return
    with Progress(
        TextColumn('{task.description}'), BarColumn(), DownloadColumn(), TimeRemainingColumn(), TextColumn('left'),
        console=console, transient=True,
    ) as progress:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield show


def source_lines(batches: MixedBatches) -> Iterator[str]:
    """One line per source with a sample of its content, so that a wrong file is noticed before hours of training."""
    synthetic = cast(Sequence[ImageSource], batches.synthetic or ())
    for kind, source in (('training images', batches.real), *(('synthetic images', source) for source in synthetic)):
        if report := sample_report(source):
            yield f'{kind}: {source.name}: {report}'
