"""Settings that training and validation share, and what they are made into."""
import dataclasses
import difflib
import glob
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from torch import nn

import timm_paf  # noqa: F401  (registers the models)
from timm_paf.data import (
    DataSplits,
    ImageSource,
    LabelledImages,
    cached_synthetic_digits,
    free_bytes,
    open_archives,
    place_on_device,
    to_unit_range,
    verify_archive,
)
from timm_paf.data import open_dataset as open_splits
from timm_paf.engine.announce import reading_bar
from timm_paf.engine.config import DataConfig

DATASETS = ('digits',)


def choose_device(name: str | None) -> torch.device:
    """The device asked for, or a GPU if there is one.

    Raises:
        ValueError: If the name is no device, or the device is not there.
    """
    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(f'--device = {name}: not to be had here ({reason}); try --device cpu.') from None
    return device


def open_dataset(
        name: str, config: DataConfig | None = None, *, console: Console | None = None) -> DataSplits:
    """The train, validation and test splits of a data set; the last two as float32 images.

    Args:
        name: Name of the data set.
        config: Where it is and how it is split; the defaults if None.
        console: Where a bar is shown if an archive has to be unpacked.

    Raises:
        ValueError: If there is none of that name, or it is not as expected.
        FileNotFoundError: If its files are not there.
    """
    try:
        with reading_bar(console) as progress:
            train, val, test = open_splits(name, (config or DataConfig()).dataset_options(progress))
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{error}; see --data-dir and --dataset-download.') from error
    except ValueError as error:
        end = '' if str(error)[-1:] in '.?' else '.'
        raise ValueError(f'--dataset = {name!r}: {error}{end}') from error
    return DataSplits(train, in_floats(val), in_floats(test))


def in_floats(data: LabelledImages) -> LabelledImages:
    """The set with images in float32, as the measurements take them."""
    return dataclasses.replace(data, images=to_unit_range(data.images))


def open_synthetic(
        paths: Sequence[str],
        *,
        joined: bool,
        num_synthetic: int,
        dataset: str,
        like: ImageSource,
        console: Console | None = None,
) -> list[ImageSource]:
    """The sources of synthetic images.

    Args:
        paths: Archives; a pattern with * or ? stands for the parts of one source, in the order of their names, and
            'generated' for digits made from the training split.
        joined: Take all paths as parts of one source.
        num_synthetic: How many images are generated.
        dataset: Name of the data set trained on.
        like: Its training images.
        console: Where a bar is shown if an archive has to be unpacked.

    Raises:
        ValueError: If a path is not such an archive, or 'generated' is asked for with another data set than the digits.
        FileNotFoundError: If a file is missing or a pattern fits none.
    """
    groups: list[list[str]] = []
    for path in paths:
        if path == 'generated':
            if dataset != 'digits':
                raise ValueError(
                    f'--synthetic generated makes digits, not {dataset}; make an archive with '
                    f'recipes/make_synthetic.py and give its path.')
            groups.append([str(cached_synthetic_digits(num_synthetic))])
        elif glob.has_magic(path) and not Path(path).exists():
            groups.append(sorted(glob.glob(path)))
            if not groups[-1]:
                raise FileNotFoundError(f'--synthetic {path}: no file fits this pattern.')
        else:
            groups.append([path])
    if joined and groups:
        groups = [[path for group in groups for path in group]]
    with reading_bar(console) as progress:
        return [
            open_archives(group, num_classes=like.num_classes, channels=like.image_shape[0], progress=progress)
            for group in groups]


def memory_budget(text: str, device: torch.device) -> int:
    """Bytes that '25%' of the device's free memory or '4' GiB are.

    Raises:
        ValueError: If the text is neither.
    """
    try:
        share = text.endswith('%')
        number = float(text.removesuffix('%'))
        if not 0 <= number < float('inf') or (share and number > 100):
            raise ValueError
    except ValueError:
        raise ValueError(
            f'--data-on-device-budget = {text!r}: expected a number of GiB such as 4, or a share of the free memory '
            f'such as 25%.') from None
    return int(number / 100 * free_bytes(device)) if share else int(number * 2**30)


def placed(sources: Sequence[ImageSource], device: torch.device, *, mode: str, budget: str) -> list[ImageSource]:
    """The sources with those on the device that `mode` (auto, yes, no) and the budget let there.

    Raises:
        ValueError: If all must be there and do not fit.
    """
    allowed = memory_budget(budget, device)
    if mode == 'no':
        return list(sources)
    return place_on_device(sources, device, budget=allowed, required=mode == 'yes')


def verify(sources: Sequence[ImageSource], console: Console) -> None:
    """Read archives whole and check every image and label.

    Raises:
        ValueError: At the first fault; the message says where.
    """
    for source in sources:
        with console.status(f'checking {source.name}') as status:
            def progress(what: str, done: int, total: int) -> None:
                status.update(f'checking {what}: {done}/{total}')

            verify_archive(source, progress=progress)


def build_model(name: str, *, num_classes: int, in_chans: int, **kwargs: Any) -> nn.Module:
    """A model by its name in timm's registry.

    Args:
        name: The name.
        num_classes: Number of classes.
        in_chans: Channels of the images.
        **kwargs: Further arguments of the model.

    Raises:
        ValueError: If timm knows no such model; the message names near ones. If it takes no such argument.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else 'timm.list_models("*_pssilu") lists ours.'
        raise ValueError(f'--model = {name!r}: timm knows no such model; {hint}')
    try:
        return timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **kwargs)
    except TypeError as error:
        if not kwargs:
            raise
        raise ValueError(f'--model-kwargs {kwargs}: {name} does not take them ({error}).') from None


def existing_folder(folder: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return there


def check_writable(folder: Path, flag: str) -> None:
    """Raise OSError if files cannot be written into a folder, or it cannot be made."""
    there = existing_folder(folder)
    if not there.is_dir():
        raise NotADirectoryError(f'{flag}: {there} is a file, where a folder is wanted; choose another name.')
    try:  # permissions alone do not tell: a file without a name does, and leaves nothing
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(f'{flag}: nothing can be written in {there} ({error.strerror}); choose another folder.') from None


def free_folder(output: str, experiment: str) -> Path:
    """The folder of a new run.

    Raises:
        FileExistsError: If it holds something already.
    """
    folder = Path(output) / experiment
    if (folder / 'report.json').exists():
        raise FileExistsError(f'{folder} holds a finished run; choose another --experiment or --output.')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f'{folder} is not empty; choose another --experiment or --output, or remove it.')
    return folder
