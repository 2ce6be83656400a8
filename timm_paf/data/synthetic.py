"""Labelled synthetic images for small data sets: a Gaussian mixture in the principal components of each class."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from timm_paf._files import cache_dir as default_cache_dir
from timm_paf.data.archives import save_archive
from timm_paf.data.arrays import ImageSource, LabelledImages, to_unit_range
from timm_paf.data.digits import digits_splits
from timm_paf.data.order import derive_seed

DEFAULT_COMPONENTS = 20
DEFAULT_MIXTURES = 4
_REVISION = 1  # increase it with any change of the sampled images, so that caches of older code are not used
_MIN_VARIANCE = 1e-3  # added to each variance, pixels in [0, 1]: a Gaussian sees few more images than dimensions


def sample_synthetic(
    train: LabelledImages,
    n: int,
    *,
    seed: int,
    components: int = DEFAULT_COMPONENTS,
    mixtures: int = DEFAULT_MIXTURES,
) -> LabelledImages:
    """Sample labelled synthetic images (n, C, H, W) uint8 that resemble a small training set.

    For each class, it fits a mixture of Gaussians with full covariances to the principal components of the images, and
    maps samples of it back to pixels, clipped to [0, 1] and rounded to 8 bits. Raises ValueError if a number is out of
    range or a class has too few images.

    Args:
        train: Training images; a class needs more than `components` and at least `mixtures` images.
        n: Number of images, at least one per class. Counts per class differ by at most one, lower class numbers first.
            The order is shuffled.
        seed: Any integer; with the same machine and library versions it determines the images.
        components: Principal components per class, 1 to the number of pixels of an image.
        mixtures: Gaussians per class, at least 1.
    """
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    pixels = int(np.prod(train.image_shape))
    if n < train.num_classes:
        raise ValueError(f'got n={n} synthetic images, expected at least one for each of {train.num_classes} classes')
    if not 1 <= components <= pixels:
        raise ValueError(f'got components={components}, expected 1 to {pixels}, the number of pixels of an image')
    if mixtures < 1:
        raise ValueError(f'got mixtures={mixtures}, expected at least 1')
    counts = torch.bincount(train.labels, minlength=train.num_classes)
    needed = max(components + 1, mixtures)
    if int(counts.min()) < needed:
        raise ValueError(
            f'{train.name}: class {int(counts.argmin())} has {int(counts.min())} images, but components={components} '
            f'and mixtures={mixtures} need {needed}; lower them')
    samples = np.empty((n, pixels), dtype=np.uint8)
    labels = np.arange(n) % train.num_classes
    for label in range(train.num_classes):
        real = to_unit_range(train.images[train.labels == label]).flatten(1).double().cpu().numpy()
        wanted = labels == label
        # the exact solver, because the randomised one would be another source of variation
        pca = PCA(components, svd_solver='full').fit(real)
        mixture = GaussianMixture(
            mixtures, reg_covar=_MIN_VARIANCE, max_iter=200, random_state=derive_seed('synthetic', seed, label) % 2**32)
        mixture.fit(pca.transform(real))
        drawn = pca.inverse_transform(mixture.sample(int(wanted.sum()))[0])
        samples[wanted] = np.rint(drawn.clip(0, 1) * 255)
    order = np.random.RandomState(derive_seed('synthetic', seed, 'order') % 2**32).permutation(n)
    images = torch.from_numpy(samples[order]).reshape(n, *train.image_shape)
    return LabelledImages(
        images, torch.from_numpy(labels[order]), train.num_classes, f'{train.name}/synthetic', train.class_names)


def distance_to_nearest(
    images: Tensor, train: ImageSource, *, device: torch.device | str = 'cpu', chunk: int = 4096,
) -> Tensor:
    """Return the distance (B,) float64 of each image (B, C, H, W) uint8 to the nearest image of a training set.

    The distance of two images is the root mean square of the differences of their pixels, rounded to 8 bits and scaled
    to [0, 1]: 0 for equal images, 1 for black and white. It is computed from integers in float64, without rounding
    before the root, so it depends neither on the batch nor on the device. `chunk` training images are compared at a
    time, with 8 bytes of memory per pixel.
    """
    queries = images.to(device).flatten(1).double()
    best = torch.full((len(queries),), torch.inf, dtype=torch.float64, device=device)
    for indices in torch.arange(len(train)).split(chunk):
        known = train.take(indices)[0]
        known = known if known.dtype == torch.uint8 else (known * 255).round()
        known = known.to(device).flatten(1).double()
        # |a-b|^2 = |a|^2 + |b|^2 - 2ab; all of these are integers far below 2^53
        squares = queries.square().sum(1)[:, None] + known.square().sum(1) - 2 * queries @ known.T
        best = torch.minimum(best, squares.amin(1))
    return (best / queries.shape[1]).sqrt().cpu() / 255


def cached_synthetic_digits(
    n: int = 10_000, seed: int = 0, cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Return the path of an archive of n >= 10 synthetic digits, made from the training split of `digits_splits`.

    The first call makes it. Its name holds a hash of everything that determines its content (settings, revision of this
    generator, versions of scikit-learn and NumPy, the training images), so an outdated file is never used. Several
    processes may call it at once. `cache_dir` is created if it does not exist; None is `default_cache_dir()`. Raises
    OSError if the cache cannot be written.
    """
    import sklearn

    train = digits_splits().train
    settings = {
        'revision': _REVISION, 'n': n, 'seed': seed, 'components': DEFAULT_COMPONENTS, 'mixtures': DEFAULT_MIXTURES,
        'sklearn': sklearn.__version__, 'numpy': np.__version__, 'train': train.fingerprint(),
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    path = folder / f'digits-synthetic-n{n}-seed{seed}-{key}.npz'
    if path.exists():
        return path
    data = sample_synthetic(train, n, seed=seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_archive(path, data)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f'cannot write to the cache {folder} ({reason}); set TIMM_PAF_CACHE to another folder') from error
    return path
