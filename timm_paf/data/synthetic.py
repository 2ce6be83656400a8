"""Labelled synthetic images for small data sets: a Gaussian mixture in the principal components of each class."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from timm_paf.data.archives import open_archive, save_archive
from timm_paf.data.arrays import ImageSource, LabelledImages, to_unit_range
from timm_paf.data.digits import digits_splits
from timm_paf.data.order import derive_seed
from timm_paf.data.unpack import default_cache_dir, only_process

DEFAULT_COMPONENTS = 20
DEFAULT_MIXTURES = 4
_REVISION = 1  # raise it with any change that alters what is sampled, so that caches of older code are not used
_MIN_VARIANCE = 1e-3  # added to each variance, pixels in [0, 1]: a Gaussian sees few more images than dimensions


def sample_synthetic(
    train: LabelledImages,
    n: int,
    *,
    seed: int,
    components: int = DEFAULT_COMPONENTS,
    mixtures: int = DEFAULT_MIXTURES,
) -> LabelledImages:
    """Draw labelled synthetic images that look like a small training set.

    For each class: principal components of its images, a mixture of Gaussians with full covariances fitted in them,
    samples of it turned back into pixels, clipped to [0, 1] and rounded to 8 bits. Nothing but `train` is looked at.

    Args:
        train: the images to learn from; a class needs more than `components` and at least `mixtures` images.
        n: how many to draw, at least one a class. Classes are balanced whatever they are in `train`: counts differ by
            at most one, lower class numbers first. The order is shuffled.
        seed: any integer; the same seed on the same machine and library versions gives the same images.
        components: principal components a class, 1 to the number of pixels of an image.
        mixtures: Gaussians a class, at least 1.

    Returns:
        n images (n, C, H, W) uint8 with labels (n,) int64.

    Raises:
        ValueError: if a number is out of range or a class has too few images.
    """
    _check_settings(train, n, components, mixtures)
    samples = np.empty((n, int(np.prod(train.image_shape))), dtype=np.uint8)
    labels = np.arange(n) % train.num_classes
    for label in range(train.num_classes):
        real = to_unit_range(train.images[train.labels == label]).flatten(1).double().cpu().numpy()
        wanted = labels == label
        class_seed = derive_seed('synthetic', seed, label) % 2**32
        drawn = _sample_class(real, int(wanted.sum()), components, mixtures, class_seed)
        samples[wanted] = np.rint(drawn.clip(0, 1) * 255)
    order = np.random.RandomState(derive_seed('synthetic', seed, 'order') % 2**32).permutation(n)
    return LabelledImages(
        torch.from_numpy(samples[order]).reshape(n, *train.image_shape),
        torch.from_numpy(labels[order]),
        train.num_classes,
        f'{train.name}/synthetic',
    )


class NearestImages:
    """How near images come to a training set: the distance that de-duplication is decided by.

    The distance of two images is the root mean square of their pixel differences, pixels quantised to 8 bits and
    counted in [0, 1]: 0 for equal images, 1 for black and white. It is computed from whole numbers in float64 without
    rounding before the root, so it depends neither on the batch nor on the device.

    Args:
        train: the images to compare with; float ones are rounded to 8 bits.
        device: where to compute; the training set stays where it is.
        chunk: how many training images are compared at a time, at least 1; it bounds memory, 8 bytes a pixel.
    """

    def __init__(self, train: ImageSource, *, device: torch.device | str = 'cpu', chunk: int = 4096) -> None:
        if chunk < 1:
            raise ValueError(f'got chunk={chunk}, expected at least 1')
        self.train, self.device, self.chunk = train, torch.device(device), chunk

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (B,) float64 of images (B, C, H, W) uint8 to the nearest training image, and its index (B,) int64.

        Both are on the CPU; among equally near training images the first counts.

        Raises:
            ValueError: if the images are not uint8 or of another shape than the training images.
        """
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self.train.image_shape:
            raise ValueError(
                f'got images {tuple(images.shape)} {images.dtype}, expected (B, C, H, W) uint8 with (C, H, W) = '
                f'{self.train.image_shape} as in {self.train.name}'
            )
        asked = images.to(self.device).flatten(1).double()
        best = torch.full((len(asked),), torch.inf, dtype=torch.float64, device=self.device)
        where = torch.zeros(len(asked), dtype=torch.int64, device=self.device)
        for start in range(0, len(self.train), self.chunk):
            indices = torch.arange(start, min(start + self.chunk, len(self.train)))
            known = _quantised(self.train.take(indices)[0]).to(self.device).flatten(1).double()
            # |a-b|^2 = |a|^2 + |b|^2 - 2ab; all of it whole numbers far below 2^53
            squares = asked.square().sum(1)[:, None] + known.square().sum(1) - 2 * asked @ known.T
            low, index = squares.min(1)
            nearer = low < best
            best, where = torch.where(nearer, low, best), torch.where(nearer, index + start, where)
        return (best / asked.shape[1]).sqrt().cpu() / 255, where.cpu()


def _quantised(images: Tensor) -> Tensor:
    return images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)


def cached_synthetic_digits(
    n: int = 10_000,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    components: int = DEFAULT_COMPONENTS,
    mixtures: int = DEFAULT_MIXTURES,
) -> Path:
    """An archive of synthetic digits made from the training split of `digits_splits`, made at the first call only.

    The name of the file holds a hash of all that decides its content (settings, revision of this generator, versions
    of scikit-learn and NumPy, the training images), so an outdated file is never taken. One that is damaged is made
    anew. Processes that start together do not disturb each other.

    Args:
        n: number of images, at least 10.
        seed: any integer.
        cache_dir: where to keep it, made if missing. If None, $TIMM_PAF_CACHE, else timm_paf in $XDG_CACHE_HOME, else
            ~/.cache/timm_paf.
        components: as for `sample_synthetic`.
        mixtures: as for `sample_synthetic`.

    Returns:
        Path of an `.npz` with `image` (n, 8, 8, 1) uint8 and `label` (n,) int64; `open_archive` reads it.

    Raises:
        ValueError: if a number is out of range.
        OSError: if the cache cannot be written.
    """
    import sklearn

    train = digits_splits().train
    _check_settings(train, n, components, mixtures)
    settings = {
        'revision': _REVISION,
        'n': int(n),
        'seed': int(seed),
        'components': int(components),
        'mixtures': int(mixtures),
        'sklearn': sklearn.__version__,
        'numpy': np.__version__,
        'train': train.fingerprint(),
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    path = folder / f'digits-synthetic-n{n}-seed{seed}-{key}.npz'
    if not _is_intact(path, train, n):
        data = sample_synthetic(train, n, seed=seed, components=components, mixtures=mixtures)
        with _cache_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with only_process(path, path, None):
                if not _is_intact(path, train, n):  # else another process was first, and may read it already
                    save_archive(path, data)
    return path


def _sample_class(real: np.ndarray, count: int, components: int, mixtures: int, seed: int) -> np.ndarray:
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    # the exact solver: the randomised one would be another source of variation, and these matrices are small
    pca = PCA(components, svd_solver='full').fit(real)
    mixture = GaussianMixture(mixtures, reg_covar=_MIN_VARIANCE, max_iter=200, random_state=seed)
    mixture.fit(pca.transform(real))
    return pca.inverse_transform(mixture.sample(count)[0])


def _check_settings(train: LabelledImages, n: int, components: int, mixtures: int) -> None:
    if n < train.num_classes:
        raise ValueError(f'got n={n} synthetic images, expected at least one for each of {train.num_classes} classes')
    pixels = int(np.prod(train.image_shape))
    if not 1 <= components <= pixels:
        raise ValueError(f'got components={components}, expected 1 to {pixels}, the number of pixels of an image')
    if mixtures < 1:
        raise ValueError(f'got mixtures={mixtures}, expected at least 1')
    counts = torch.bincount(train.labels, minlength=train.num_classes)
    needed = max(components + 1, mixtures)
    if int(counts.min()) < needed:
        raise ValueError(
            f'{train.name}: class {int(counts.argmin())} has {int(counts.min())} images, but components={components} '
            f'and mixtures={mixtures} need {needed}; ask for fewer of them'
        )


def _is_intact(path: Path, train: LabelledImages, n: int) -> bool:
    try:
        data = open_archive(path, num_classes=train.num_classes, channels=train.image_shape[0], mapped=False)
    except (FileNotFoundError, ValueError):
        return False
    return len(data) == n and data.image_shape == train.image_shape


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f'cannot write to the cache {folder} ({reason}); set TIMM_PAF_CACHE to another folder') from error
