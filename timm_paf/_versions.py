"""Versions and devices, for reports, checkpoints and bug reports."""
import os
import platform
from importlib import metadata

import torch

from timm_paf._version import __version__

__all__ = ['device_names', 'library_versions']

LIBRARIES = ('torch', 'torchvision', 'timm', 'pyautoattack', 'numpy', 'triton')


def library_versions(*more: str) -> dict[str, str]:
    """Versions of Python, of this package and of the installed libraries that results depend on.

    Args:
        more: Names of further packages, such as 'diffusers'.

    Returns:
        Version by package name; a package that is not installed is left out.
    """
    versions = {'python': platform.python_version(), 'timm-paf': __version__}
    for name in (*LIBRARIES, *more):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def device_names() -> list[str]:
    """Names of the GPUs that torch sees, after the CPU's architecture and number of cores."""
    names = [f'CPU ({platform.machine()}, {os.cpu_count()} cores)']
    names += [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append('Apple GPU (mps)')
    return names
