"""Versions and devices as reports and bug reports show them."""
import platform

import torch

import timm_paf
from timm_paf._versions import device_names, library_versions


def test_versions_are_those_in_use():
    versions = library_versions('no-such-package')
    assert list(versions)[:3] == ['python', 'timm-paf', 'torch']
    assert versions['python'] == platform.python_version() and versions['timm-paf'] == timm_paf.__version__
    assert versions['torch'].split('+')[0] == torch.__version__.split('+')[0]
    assert {'torchvision', 'timm', 'pyautoattack', 'numpy'} <= set(versions) and 'no-such-package' not in versions


def test_each_gpu_is_named():
    assert len(device_names()) >= 1 + torch.cuda.device_count()
