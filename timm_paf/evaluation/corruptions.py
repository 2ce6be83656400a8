"""Accuracy under common corruptions, from a folder in the format of CIFAR-10-C."""
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf.attacks import eval_mode
from timm_paf.data.folders import is_hidden
from timm_paf.data.headers import read_class_names
from timm_paf.evaluation.accuracy import Accuracy, Part
from timm_paf.evaluation.correct import map_in_turn, model_device

__all__ = ['BENCHMARK_CORRUPTIONS', 'CorruptionArchive', 'CorruptionReport', 'corruption_accuracy']

SEVERITIES = 5
#: The 15 corruptions of Hendrycks and Dietterich (arXiv 1903.12261). Their archive has four more, for validation.
BENCHMARK_CORRUPTIONS = (
    'gaussian_noise', 'shot_noise', 'impulse_noise', 'defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur', 'snow',
    'frost', 'fog', 'brightness', 'contrast', 'elastic_transform', 'pixelate', 'jpeg_compression',
)


class CorruptionArchive:
    """A folder with `<corruption>.npy`, uint8 (5 N, H, W, C), and `labels.npy`, integers (N,) or (5 N,).

    Severities 1 to 5 are consecutive blocks of N images. The files are memory-mapped and read batch by batch.
    `class_names.txt`, one name per line, may name the classes.

    Raises:
        FileNotFoundError: If the folder, its labels or its images do not exist.
        ValueError: If a file has another format.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = folder = Path(folder)
        found = {path.stem for path in folder.glob('*.npy') if not is_hidden(path.name)}
        for file, missing in (('labels.npy', 'labels' not in found), ('<corruption>.npy', not found - {'labels'})):
            if missing:
                raise FileNotFoundError(f'corruptions {folder}: there is no {file}; expected a folder like CIFAR-10-C.')
        known = [name for name in BENCHMARK_CORRUPTIONS if name in found]
        #: Names of the corruptions; first those of the benchmark, in its order.
        self.names = (*known, *sorted(found - {*known, 'labels'}))
        self.labels = _mapped(folder / 'labels.npy')
        #: Names of the classes in the order of their numbers; None if the folder does not have them.
        self.class_names = read_class_names(folder / 'labels.npy')
        self._images = {name: _mapped(folder / f'{name}.npy') for name in self.names}
        shape = self._images[self.names[0]].shape
        for name, images in self._images.items():
            if images.dtype != np.uint8 or images.ndim != 4 or not len(images) or len(images) % SEVERITIES:
                raise ValueError(
                    f'{folder / name}.npy: {images.dtype} of shape {images.shape}; expected uint8 (5 N, H, W, C).')
            if images.shape != shape:
                raise ValueError(
                    f'corruptions {folder}: files of different shapes, {shape} and {images.shape}; expected one shape.')
        self.images_per_severity = shape[0] // SEVERITIES  #: N.
        self.image_shape = (shape[3], *shape[1:3])  #: (C, H, W).
        kind, lengths = self.labels.dtype, (shape[0], self.images_per_severity)
        if not np.issubdtype(kind, np.integer) or self.labels.shape not in [(length,) for length in lengths]:
            raise ValueError(
                f'{folder / "labels.npy"} holds {kind} values of shape {self.labels.shape}; expected {lengths[0]} '
                f'integers, one per image, or {lengths[1]}, one per image of one severity.')

    def batches(
            self, name: str, severity: int, *, batch_size: int, n_examples: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one corruption and severity (1 to 5): float32 (B, C, H, W) in [0, 1], and labels, int64 (B,)."""
        n = self.images_per_severity
        start = (severity - 1) * n
        images = self._images[name][start:start + n][:n_examples or n]
        labels = self.labels[start % len(self.labels):]
        for first in range(0, len(images), batch_size):
            pixels = images[first:first + batch_size].transpose(0, 3, 1, 2).copy()
            yield (
                torch.from_numpy(pixels).float() / 255,
                torch.from_numpy(labels[first:first + len(pixels)].astype(np.int64)))


@dataclass(frozen=True, kw_only=True)
class CorruptionReport(Part):
    """Result of `corruption_accuracy`."""
    accuracies: dict[str, tuple[Accuracy, ...]]  #: For each corruption, one accuracy per severity from 1 to 5.
    archive: str  #: The folder.
    seconds: float  #: Duration.

    @property
    def averaged(self) -> tuple[str, ...]:
        """Corruptions in the mean: the fifteen of the benchmark if all are in the archive, else all of the archive."""
        return BENCHMARK_CORRUPTIONS if {*BENCHMARK_CORRUPTIONS} <= self.accuracies.keys() else tuple(self.accuracies)

    @property
    def mean(self) -> Accuracy:
        """Accuracy over corruptions and severities; each has the same number of images."""
        return _sum(cell for name in self.averaged for cell in self.accuracies[name])

    def at_severity(self, severity: int) -> Accuracy:
        """Accuracy over corruptions at one severity, 1 to 5."""
        return _sum(self.accuracies[name][severity - 1] for name in self.averaged)

    def of(self, name: str) -> Accuracy:
        """Accuracy over the severities of one corruption."""
        return _sum(self.accuracies[name])

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the first level holds the mean."""
        rest = super().to_dict()
        return {
            **self.mean.to_dict(), 'attack': 'common corruptions', 'averaged': list(self.averaged),
            'severities': rest.pop('accuracies'), **rest}


def corruption_accuracy(
        model: nn.Module, archive: CorruptionArchive, *, n_examples: int | None = None, batch_size: int = 250,
        device: torch.device | None = None, progress: Callable[[str, int, int], None] | None = None,
        rank: int = 0, world_size: int = 1,
) -> CorruptionReport:
    """Accuracy for each corruption and severity, in eval mode; the model is not changed.

    Several processes take the pairs of corruption and severity in turn; each reads only its own.

    Other arguments are those of `evaluate_robustness`.

    Args:
        archive: The images; each process needs them.
        n_examples: Only the first n images of each severity; all if None.
        progress: Called as progress(corruption, corruptions done, all corruptions).

    Raises:
        ValueError: If a label is not a class of the model.
    """
    started = time.monotonic()
    device = device or model_device(model, torch.device('cpu'))
    cells = [(name, severity) for name in archive.names for severity in range(1, 1 + SEVERITIES)]

    def accuracy_of(cell: tuple[str, int]) -> Accuracy:
        name, severity = cell
        if progress is not None:
            progress(name, archive.names.index(name), len(archive.names))
        correct = []
        for x, y in archive.batches(name, severity, batch_size=batch_size, n_examples=n_examples):
            logits = model(x.to(device)).cpu()
            if not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
                raise ValueError(
                    f'labels.npy has labels from {int(y.min())} to {int(y.max())}; expected 0 to '
                    f'{logits.shape[1] - 1}, the classes of the model.')
            correct.append(logits.argmax(1) == y)
        return Accuracy.of(torch.cat(correct))

    shared = Processes.from_rank(rank, world_size, device=device)
    with eval_mode(model), torch.no_grad(), shared.patient() as processes:
        found = map_in_turn(processes, cells, accuracy_of)
    accuracies = {name: tuple(found[SEVERITIES * i:SEVERITIES * (i + 1)]) for i, name in enumerate(archive.names)}
    return CorruptionReport(accuracies=accuracies, archive=str(archive.folder), seconds=time.monotonic() - started)


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f'{path} cannot be read as .npy ({" ".join(str(error).split())[:100]}).') from None


def _sum(cells: Iterable[Accuracy]) -> Accuracy:
    return Accuracy(*map(sum, zip(*((cell.correct, cell.total) for cell in cells), strict=True)))
