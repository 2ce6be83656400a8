"""The embedded data set: scikit-learn's handwritten digits, in a fixed split."""

from typing import NamedTuple

import torch

from timm_paf.data.arrays import LabelledImages
from timm_paf.data.splits import stratified_split

_SIZES = (360, 180, 1257)  # test, validation, train
_SPLIT_SEED = 20210  # fixed, so that all runs use the same test images


class DigitsSplits(NamedTuple):
    """The three disjoint parts of the digits, see `digits_splits`."""

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages


def digits_splits() -> DigitsSplits:
    """Return the 1797 digits of scikit-learn as train (1257), validation (180) and test (360) sets.

    Images are (N, 1, 8, 8) float32 in [0, 1], the stored values 0..16 divided by 16 (exact in float32); ten classes.
    The split is stratified and fixed: it depends neither on a seed nor on library versions. The first n images of each
    set are nearly balanced over the classes.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits" (UCI, 1998), its test part as in
    `sklearn.datasets.load_digits`.
    """
    from sklearn.datasets import load_digits  # not at the top, because it is slow and archives do not need it

    raw = load_digits()
    labels = torch.from_numpy(raw.target).to(torch.int64)
    images = torch.from_numpy(raw.images).to(torch.float32)[:, None] / 16
    whole = LabelledImages(images, labels, num_classes=10, name='digits', class_names=tuple('0123456789'))
    parts = zip(('test', 'val', 'train'), stratified_split(labels, _SIZES, seed=_SPLIT_SEED), strict=True)
    return DigitsSplits(**{part: whole.subset(indices, name=f'digits/{part}') for part, indices in parts})
