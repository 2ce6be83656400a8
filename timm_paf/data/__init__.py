"""Data sets that timm lacks, and batches that mix real and synthetic images at an exact share."""

from timm_paf.data.archives import open_archive, open_archives, save_archive
from timm_paf.data.arrays import ConcatenatedImages, ImageSource, LabelledImages, check_compatible, to_unit_range
from timm_paf.data.augment import Augment, random_hflip, random_shift
from timm_paf.data.digits import DigitsSplits, digits_splits
from timm_paf.data.mixing import Batch, MixedBatches
from timm_paf.data.order import IndexPermutation, derive_seed, generator_for
from timm_paf.data.splits import stratified_split
from timm_paf.data.synthetic import cached_synthetic_digits, sample_synthetic

__all__ = [
    'Augment',
    'Batch',
    'ConcatenatedImages',
    'DigitsSplits',
    'ImageSource',
    'IndexPermutation',
    'LabelledImages',
    'MixedBatches',
    'cached_synthetic_digits',
    'check_compatible',
    'derive_seed',
    'digits_splits',
    'generator_for',
    'open_archive',
    'open_archives',
    'random_hflip',
    'random_shift',
    'sample_synthetic',
    'save_archive',
    'stratified_split',
    'to_unit_range',
]
