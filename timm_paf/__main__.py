"""Commands of the package: python -m timm_paf [train|validate] [flags].

    python -m timm_paf              versions, devices and registered names, for bug reports
    python -m timm_paf train        adversarial training; --help lists its flags
    python -m timm_paf validate     measure a checkpoint; --help lists its flags
"""
import os
import platform
import sys
from pathlib import Path

import timm
import torch

from timm_paf._files import cache_dir
from timm_paf._versions import device_names, library_versions
from timm_paf.activations import ACTIVATIONS
from timm_paf.kernels.choice import obstacle

USAGE = 'usage: python -m timm_paf [train|validate] [flags]'
VARIABLES = ('TIMM_PAF_', 'OMP_', 'GOMP_', 'KMP_', 'MKL_NUM', 'CUDA_', 'CXX', 'TORCH_LOGS', 'PYTORCH_')


def environment() -> dict[str, str]:
    """What a bug report needs to know, by name: versions, devices, kernels, registered names, environment variables.

    It may compile a kernel for the CPU, which takes a second or two on a new machine.
    """
    facts = library_versions()
    facts |= {'timm-paf': f'{facts["timm-paf"]} in {Path(__file__).parent}', 'system': platform.platform()}
    facts['devices'] = '; '.join(device_names())
    facts['cpu threads'] = f'{torch.get_num_threads()} of torch, {torch.backends.cpu.get_cpu_capability()}'
    cuda = torch.version.cuda and f'built for CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}'
    facts['gpu support'] = cuda or (torch.version.hip and f'built for ROCm {torch.version.hip}') or 'not in this torch'
    for device in map(torch.device, ('cpu', 'cuda:0') if torch.cuda.device_count() else ('cpu',)):
        reason = obstacle(device)
        facts[f'kernels, {device.type}'] = 'available' if reason is None else f'not available: {reason}'
    models = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith('timm_paf.')]
    facts['activations'] = f'{len(ACTIVATIONS)} in the registry of timm: {", ".join(ACTIVATIONS)}'
    plain = [name.removesuffix('_relu') for name in models if name.endswith('_relu')]
    facts['models'] = f'{len(models)} in the registry of timm; architectures: {", ".join(plain)}'
    facts['cache'] = str(cache_dir())
    named = [f'{name}={value}' for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)]
    facts['variables'] = ' '.join(named) or 'none'
    return facts


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        Exit status: 0, or 2 for a wrong command; the commands document theirs.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        facts = environment()
        width = max(map(len, facts))
        for name, fact in facts.items():
            print(f'{name:{width}}  {fact}')
        return 0
    command, *flags = argv
    if command in ('train', 'validate'):
        from timm_paf.engine import commands
        return getattr(commands, command)(flags)
    if command in ('-h', '--help'):
        print(__doc__)
        return 0
    print(f'error: {command}: there is no such command; {USAGE}', file=sys.stderr)
    return 2


if __name__ == '__main__':
    sys.exit(main())
