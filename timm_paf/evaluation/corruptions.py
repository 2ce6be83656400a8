"""Accuracy under common corruptions, from a folder in the format of CIFAR-10-C."""
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf.attacks import eval_mode
from timm_paf.evaluation.accuracy import Accuracy
from timm_paf.evaluation.correct import map_in_turn, model_device

__all__ = ['BENCHMARK_CORRUPTIONS', 'CorruptionArchive', 'CorruptionReport', 'corruption_accuracy']

SEVERITIES = 5
# Hendrycks and Dietterich (arXiv 1903.12261); their archive has four more corruptions, kept for validation
BENCHMARK_CORRUPTIONS = (
    'gaussian_noise', 'shot_noise', 'impulse_noise', 'defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur', 'snow',
    'frost', 'fog', 'brightness', 'contrast', 'elastic_transform', 'pixelate', 'jpeg_compression',
)


class CorruptionArchive:
    """A folder with `<corruption>.npy`, uint8 (5 N, H, W, C), and `labels.npy`, integers (N,) or (5 N,).

    Severities 1 to 5 are consecutive blocks of N images. The files are memory-mapped and read batch by batch.

    Args:
        folder: The folder.

    Attributes:
        folder: The folder.
        names: Names of the corruptions; first those of the benchmark, in its order.
        labels: Labels (N,) or (5 N,).
        images_per_severity: N.
        image_shape: (C, H, W).

    Raises:
        FileNotFoundError: If the folder, its labels or its images do not exist.
        ValueError: If a file has another format.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = folder = Path(folder)
        if not (folder / 'labels.npy').is_file():
            raise FileNotFoundError(f'corruptions {folder}: there is no labels.npy; expected a folder like CIFAR-10-C.')
        found = sorted(path.stem for path in folder.glob('*.npy') if path.stem != 'labels')
        if not found:
            raise FileNotFoundError(f'corruptions {folder}: there is no <corruption>.npy next to labels.npy.')
        known = [name for name in BENCHMARK_CORRUPTIONS if name in found]
        self.names = (*known, *(name for name in found if name not in known))
        self.labels = _mapped(folder / 'labels.npy')
        if self.labels.ndim != 1 or not np.issubdtype(self.labels.dtype, np.integer):
            raise ValueError(
                f'{folder / "labels.npy"}: {self.labels.dtype} of shape {self.labels.shape}; expected integers (N,).')
        self._images = {name: self._checked(folder / f'{name}.npy') for name in self.names}
        shapes = {images.shape for images in self._images.values()}
        if len(shapes) > 1:
            raise ValueError(f'corruptions {folder}: files of different shapes, {sorted(shapes)}; expected one shape.')
        (count, height, width, channels), = shapes
        self.images_per_severity = count // SEVERITIES
        self.image_shape = (channels, height, width)

    def _checked(self, path: Path) -> np.ndarray:
        images = _mapped(path)
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images) or len(images) % SEVERITIES:
            raise ValueError(f'{path}: {images.dtype} of shape {images.shape}; expected uint8 (5 N, H, W, C).')
        if len(self.labels) not in (len(images), len(images) // SEVERITIES):
            raise ValueError(
                f'{path}: {len(images)} images and {len(self.labels)} labels; expected one label per image, or one per '
                'image of one severity.')
        return images

    def batches(
            self,
            name: str,
            severity: int,
            *,
            batch_size: int,
            n_examples: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images, float32 (B, C, H, W) in [0, 1], and labels, int64 (B,).

        Args:
            name: A corruption, one of `names`.
            severity: 1 to 5.
            batch_size: Images per batch.
            n_examples: Only the first n images; all if None.
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
    """Result of `corruption_accuracy`.

    Args:
        accuracies: For each corruption, one accuracy per severity from 1 to 5.
        archive: The folder.
        seconds: Duration.
    """
    accuracies: dict[str, tuple[Accuracy, ...]]
    archive: str
    seconds: float

    @property
    def averaged(self) -> tuple[str, ...]:
        """Corruptions in the mean: the fifteen of the benchmark if all are in the archive, else all of the archive."""
        complete = all(name in self.accuracies for name in BENCHMARK_CORRUPTIONS)
        return BENCHMARK_CORRUPTIONS if complete else tuple(self.accuracies)

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
    """Accuracy for each corruption and severity, in eval mode; the model is not changed.

    Several processes take the pairs of corruption and severity in turn; each reads only its own.

    Args:
        model: Maps images in [0, 1] to logits.
        archive: The images.
        n_examples: Only the first n images of each severity; all if None.
        batch_size: Images per batch.
        device: Device of the model; that of its first parameter if None.
        progress: Called as progress(corruption, corruptions done, all corruptions).
        rank: Number of this process, as in `evaluate_robustness`.
        world_size: Number of processes; each needs the archive.

    Raises:
        ValueError: If a label is not a class of the model.
    """
    started = time.monotonic()
    device = device or model_device(model, torch.device('cpu'))
    cells = [(name, severity) for name in archive.names for severity in range(1, SEVERITIES + 1)]

    def accuracies_of(mine: Sequence[tuple[str, int]]) -> list[Accuracy]:
        found = []
        for name, severity in mine:
            if progress is not None:
                progress(name, archive.names.index(name), len(archive.names))
            batches = archive.batches(name, severity, batch_size=batch_size, n_examples=n_examples)
            found.append(Accuracy.of(torch.cat([_correct(model, x, y, device) for x, y in batches])))
        return found

    shared = Processes.from_rank(rank, world_size, device=device)
    with eval_mode(model), torch.no_grad(), shared.patient() as processes:
        found = dict(zip(cells, map_in_turn(processes, cells, accuracies_of), strict=True))
    accuracies = {
        name: tuple(found[name, severity] for severity in range(1, SEVERITIES + 1)) for name in archive.names}
    return CorruptionReport(
        accuracies=accuracies, archive=str(archive.folder), seconds=time.monotonic() - started)


def _correct(model: nn.Module, x: Tensor, y: Tensor, device: torch.device) -> Tensor:
    logits = model(x.to(device))
    if int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        raise ValueError(
            f'labels.npy has labels from {int(y.min())} to {int(y.max())}; expected 0 to {logits.shape[1] - 1}, the '
            'classes of the model.')
    return logits.argmax(1).cpu() == y


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f'{path} cannot be read as .npy ({" ".join(str(error).split())[:100]}).') from None


def _sum(cells: Iterable[Accuracy]) -> Accuracy:
    cells = list(cells)
    return Accuracy(sum(cell.correct for cell in cells), sum(cell.total for cell in cells))
