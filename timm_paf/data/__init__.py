"""Data sets that timm does not have, and batches with an exact fraction of synthetic images."""
from timm_paf.data.archives import open_archive, open_archives, save_archive
from timm_paf.data.arrays import ConcatenatedImages, ImageSource, LabelledImages, to_unit_range
from timm_paf.data.augment import Augment
from timm_paf.data.classes import all_labels, check_classes, class_names, match_classes, names_of_classes
from timm_paf.data.datasets import DatasetOptions, DataSplits, open_dataset
from timm_paf.data.decoded import Decoding
from timm_paf.data.digits import digits_splits
from timm_paf.data.errors import DataChanged
from timm_paf.data.evaluation import EvaluationImages
from timm_paf.data.loading import Prefetched, free_bytes, place_on_device
from timm_paf.data.manifest import manifest_parts, read_manifest
from timm_paf.data.mixing import Batch, MixedBatches
from timm_paf.data.order import derive_seed
from timm_paf.data.report import sample_report, source_notes
from timm_paf.data.splits import ImagesWithout, held_out
from timm_paf.data.synthetic import cached_synthetic_digits, sample_synthetic
from timm_paf.data.verify import verify_archive

__all__ = [
    'Augment', 'Batch', 'ConcatenatedImages', 'DataChanged', 'DataSplits', 'DatasetOptions', 'Decoding',
    'EvaluationImages', 'ImageSource', 'ImagesWithout', 'LabelledImages', 'MixedBatches', 'Prefetched',
    'all_labels', 'cached_synthetic_digits', 'check_classes', 'class_names', 'derive_seed', 'digits_splits',
    'free_bytes', 'held_out', 'manifest_parts', 'match_classes', 'names_of_classes', 'open_archive',
    'open_archives', 'open_dataset', 'place_on_device', 'read_manifest', 'sample_report', 'sample_synthetic',
    'save_archive', 'source_notes', 'to_unit_range', 'verify_archive',
]
