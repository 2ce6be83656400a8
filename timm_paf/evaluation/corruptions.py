"""Accuracy under common corruptions, from an archive in the form of CIFAR-10-C."""
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf.attacks import eval_mode
from timm_paf.evaluation.report import Accuracy

__all__ = ['BENCHMARK_CORRUPTIONS', 'CorruptionArchive', 'CorruptionReport', 'corruption_accuracy']

SEVERITIES = 5
# the fifteen of Hendrycks and Dietterich (arXiv 1903.12261); their archive holds four more, kept for validation
BENCHMARK_CORRUPTIONS = (
    'gaussian_noise', 'shot_noise', 'impulse_noise', 'defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur', 'snow',
    'frost', 'fog', 'brightness', 'contrast', 'elastic_transform', 'pixelate', 'jpeg_compression',
)


class CorruptionArchive:
    """A folder of `<corruption>.npy`, uint8 (5 N, H, W, C), and `labels.npy`, integers (N,) or (5 N,).

    Severities 1 to 5 are consecutive blocks of N images. Files are mapped: only what is looked at is read.

    Args:
        folder: The folder.

    Attributes:
        folder: The folder.
        names: The corruptions, those of the benchmark first and in its order.
        images_per_severity: N.
        image_shape: (C, H, W).

    Raises:
        FileNotFoundError: If there is no such folder, or no labels or images in it.
        ValueError: If a file is not as described.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = folder = Path(folder)
        if not (folder / 'labels.npy').is_file():
            raise FileNotFoundError(f'corruptions {folder}: there is no labels.npy; expected a folder like CIFAR-10-C.')
        found = sorted(path.stem for path in folder.glob('*.npy') if path.stem != 'labels')
        if not found:
            raise FileNotFoundError(f'corruptions {folder}: there are no <corruption>.npy beside labels.npy.')
        known = [name for name in BENCHMARK_CORRUPTIONS if name in found]
        self.names = (*known, *(name for name in found if name not in known))
        self.labels = _mapped(folder / 'labels.npy')
        if self.labels.ndim != 1 or not np.issubdtype(self.labels.dtype, np.integer):
            raise ValueError(
                f'{folder / "labels.npy"}: {self.labels.dtype} of shape {self.labels.shape}; expected integers (N,).')
        self._images = {name: self._check(folder / f'{name}.npy') for name in self.names}
        shapes = {images.shape for images in self._images.values()}
        if len(shapes) > 1:
            raise ValueError(f'corruptions {folder}: files of different shapes, {sorted(shapes)}; expected one.')
        (count, height, width, channels), = shapes
        self.images_per_severity = count // SEVERITIES
        self.image_shape = (channels, height, width)

    def _check(self, path: Path) -> np.ndarray:
        images = _mapped(path)
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images) or len(images) % SEVERITIES:
            raise ValueError(f'{path}: {images.dtype} of shape {images.shape}; expected uint8 (5 N, H, W, C).')
        if len(self.labels) not in (len(images), len(images) // SEVERITIES):
            raise ValueError(
                f'{path}: {len(images)} images and {len(self.labels)} labels; expected a label for each image, or for '
                'each image of one severity.')
        return images

    def batches(self, name: str, severity: int, *, batch_size: int, n_examples: int | None = None):
        """Batches of images float32 (B, C, H, W) in [0, 1] and labels (B,) int64 of one corruption.

        Args:
            name: One of `names`.
            severity: 1 to 5.
            batch_size: Images a batch.
            n_examples: The first n images only.
        """
        n = self.images_per_severity
        start = (severity - 1) * n
        labels = self.labels[start:start + n] if len(self.labels) == SEVERITIES * n else self.labels
        stop = min(n_examples or n, n)
        for first in range(0, stop, batch_size):
            last = min(first + batch_size, stop)
            images = torch.from_numpy(np.array(self._images[name][start + first:start + last]))
            yield (
                images.permute(0, 3, 1, 2).contiguous().float() / 255,
                torch.from_numpy(np.array(labels[first:last], dtype=np.int64)))


@dataclass(frozen=True, kw_only=True)
class CorruptionReport:
    """What `corruption_accuracy` measured.

    Args:
        accuracies: For each corruption, one for each severity from 1 to 5.
        archive: The folder.
        seconds: Time it took.
    """
    accuracies: dict[str, tuple[Accuracy, ...]]
    archive: str
    seconds: float

    @property
    def averaged(self) -> tuple[str, ...]:
        """What `mean` is over: the benchmark's fifteen if all are there, else whatever is."""
        whole = all(name in self.accuracies for name in BENCHMARK_CORRUPTIONS)
        return BENCHMARK_CORRUPTIONS if whole else tuple(self.accuracies)

    @property
    def mean(self) -> Accuracy:
        """Over corruptions and severities, which have equally many images each."""
        return _sum([cell for name in self.averaged for cell in self.accuracies[name]])

    def at_severity(self, severity: int) -> Accuracy:
        """Over corruptions at one severity, 1 to 5."""
        return _sum([self.accuracies[name][severity - 1] for name in self.averaged])

    def of(self, name: str) -> Accuracy:
        """Over the severities of one corruption."""
        return _sum(self.accuracies[name])

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the first level holds the mean."""
        cells = {name: [cell.to_dict() for cell in row] for name, row in self.accuracies.items()}
        return {
            **self.mean.to_dict(), 'attack': 'common corruptions', 'averaged': list(self.averaged), 'severities': cells,
            'archive': self.archive, 'seconds': self.seconds}


def corruption_accuracy(
        model: nn.Module,
        archive: CorruptionArchive,
        *,
        n_examples: int | None = None,
        batch_size: int = 250,
        device: torch.device | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        rank: int = 0,
        world_size: int = 1,
) -> CorruptionReport:
    """Accuracy for each corruption and severity, in eval mode; the model is left as found.

    Processes that share the work take pairs of corruption and severity in turn, and read no others.

    Args:
        model: Maps images in [0, 1] to logits.
        archive: The images.
        n_examples: The first n images of each severity; all if None.
        batch_size: Images a batch.
        device: Where the model is; its first parameter's if None.
        progress: Called as progress(corruption, corruptions done, corruptions in all).
        rank: Number of this process among those that share the work, as `evaluate_robustness` has it.
        world_size: How many they are; each has the archive.

    Raises:
        ValueError: If a label is no class of the model.
    """
    started = time.monotonic()
    device = device or next((p.device for p in model.parameters()), torch.device('cpu'))
    cells = [(name, severity) for name in archive.names for severity in range(1, SEVERITIES + 1)]

    def look() -> dict[tuple[str, int], Accuracy]:
        found = {}
        for name, severity in cells[rank::world_size]:
            if progress is not None:
                progress(name, archive.names.index(name), len(archive.names))
            batches = archive.batches(name, severity, batch_size=batch_size, n_examples=n_examples)
            found[name, severity] = Accuracy.of(torch.cat([_correct(model, x, y, device) for x, y in batches]))
        return found

    processes = Processes.from_rank(rank, world_size, device=device)
    with eval_mode(model), torch.no_grad(), processes.patient() as ranks:
        parts = ranks.all_gather_object(ranks.run_together(look))
        found = {cell: counted for part in parts for cell, counted in part.items()}
    accuracies = {
        name: tuple(found[name, severity] for severity in range(1, SEVERITIES + 1)) for name in archive.names}
    return CorruptionReport(
        accuracies=accuracies, archive=str(archive.folder), seconds=time.monotonic() - started)


def _correct(model: nn.Module, x: Tensor, y: Tensor, device: torch.device) -> Tensor:
    logits = model(x.to(device))
    if int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        raise ValueError(
            f'labels.npy holds labels from {int(y.min())} to {int(y.max())}, the model has {logits.shape[1]} classes.')
    return logits.argmax(1).cpu() == y


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f'{path} cannot be read as .npy ({" ".join(str(error).split())[:100]}).') from None


def _sum(cells) -> Accuracy:
    return Accuracy(sum(cell.correct for cell in cells), sum(cell.total for cell in cells))
