"""Versions and devices, for reports, checkpoints and bug reports."""
import os
import platform
from importlib import metadata

import torch

from timm_paf._version import __version__

__all__ = ['available_cores', 'device_names', 'library_versions']

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


def available_cores() -> int:
    """Number of cores that this process may use, which can be fewer than the machine has, as in a Slurm job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def device_names() -> list[str]:
    """The CPU, then the GPUs that torch sees: architecture and cores; name, compute capability and memory."""
    names = [f'CPU ({platform.machine()}, {os.cpu_count()} cores)']
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        names.append(f'{found.name} (sm_{found.major}{found.minor}, {found.total_memory / 2**30:.0f} GiB)')
    if torch.backends.mps.is_available():
        names.append('Apple GPU (mps)')
    return names
