"""Data sets that timm does not have, and batches with an exact fraction of synthetic images."""

from timm_paf.data.archives import open_archive, open_archives, save_archive
from timm_paf.data.arrays import (
    ConcatenatedImages,
    ImageSource,
    LabelledImages,
    check_compatible,
    label_distribution,
    to_unit_range,
)
from timm_paf.data.augment import Augment
from timm_paf.data.datasets import DatasetOptions, DataSplits, ImagesWithout, all_labels, open_dataset
from timm_paf.data.decoded import DecodedImages, Decoding, StreamedImages
from timm_paf.data.digits import DigitsSplits, digits_splits
from timm_paf.data.disk import DiskImages
from timm_paf.data.errors import DataChanged
from timm_paf.data.folders import FolderImages
from timm_paf.data.loading import Prefetched, free_bytes, place_on_device, stored_bytes
from timm_paf.data.manifest import manifest_parts, read_manifest
from timm_paf.data.mixing import Batch, MixedBatches
from timm_paf.data.order import IndexPermutation, derive_seed, generator_for
from timm_paf.data.pairs import find_labels
from timm_paf.data.report import SampleReport, sample_report
from timm_paf.data.splits import held_out, stratified_split
from timm_paf.data.streams import EndlessStream, Rank, RealPasses, counts_after
from timm_paf.data.synthetic import NearestImages, cached_synthetic_digits, sample_synthetic
from timm_paf.data.unpack import default_cache_dir
from timm_paf.data.verify import verify_archive

__all__ = [
    'Augment',
    'Batch',
    'ConcatenatedImages',
    'DataChanged',
    'DataSplits',
    'DatasetOptions',
    'DecodedImages',
    'Decoding',
    'DigitsSplits',
    'DiskImages',
    'EndlessStream',
    'FolderImages',
    'ImageSource',
    'ImagesWithout',
    'IndexPermutation',
    'LabelledImages',
    'MixedBatches',
    'NearestImages',
    'Prefetched',
    'Rank',
    'RealPasses',
    'SampleReport',
    'StreamedImages',
    'all_labels',
    'cached_synthetic_digits',
    'check_compatible',
    'counts_after',
    'default_cache_dir',
    'derive_seed',
    'digits_splits',
    'find_labels',
    'free_bytes',
    'generator_for',
    'held_out',
    'label_distribution',
    'manifest_parts',
    'open_archive',
    'open_archives',
    'open_dataset',
    'place_on_device',
    'read_manifest',
    'sample_report',
    'sample_synthetic',
    'save_archive',
    'stored_bytes',
    'stratified_split',
    'to_unit_range',
    'verify_archive',
]
