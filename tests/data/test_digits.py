"""The embedded digits and their fixed split."""

import pytest
import torch

from timm_paf.data import digits_splits

SIZES = {'train': 1257, 'val': 180, 'test': 360}
FINGERPRINTS = {
    'train': '125dee5aeab348c27b87ebe0905f4e643ed8c9a5877e9b5b904b9a5d36c8fd8c',
    'val': '996eaee3e13595b7770a431e36ec39c30fee20687f2533f860c3ec764ec2fba6',
    'test': '27aeb253a59f8cb5c54b99e26b76303ed519d9789e999997083886cc1c414ec8',
}


@pytest.mark.parametrize('part', SIZES)
def test_part(part):
    data = getattr(digits_splits(), part)
    size = SIZES[part]
    assert data.images.shape == (size, 1, 8, 8) and data.images.dtype == torch.float32
    assert (data.num_classes, data.name) == (10, f'digits/{part}')
    # pixels, order and membership together: results are only comparable while this holds
    assert data.fingerprint() == FINGERPRINTS[part]
