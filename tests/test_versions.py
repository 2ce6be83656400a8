"""Versions and devices as reports and bug reports show them."""
import platform
from types import SimpleNamespace

import timm
import torch

import timm_paf
from timm_paf import __main__ as commands
from timm_paf._versions import library_versions


def test_versions_are_those_in_use():
    versions = library_versions('no-such-package')
    assert list(versions)[:3] == ['python', 'timm-paf', 'torch']
    assert versions['python'] == platform.python_version() and versions['timm-paf'] == timm_paf.__version__
    assert versions['torch'].split('+')[0] == torch.__version__.split('+')[0]
    assert {'torchvision', 'timm', 'pyautoattack', 'numpy'} <= set(versions) and 'no-such-package' not in versions


def test_the_environment_says_what_a_bug_report_needs(monkeypatch, capsys):
    monkeypatch.setenv('TIMM_PAF_KERNELS', 'reference')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(
        name='Card', major=9, minor=0, total_memory=80 * 2**30))
    monkeypatch.setattr(commands, 'obstacle', lambda device: 'no driver' if device.type == 'cuda' else None)
    assert commands.main([]) == 0
    rows = [line.split('  ', 1) for line in capsys.readouterr().out.splitlines()]
    facts = {name.strip(): fact.strip() for name, fact in rows}
    assert facts['torch'] == library_versions()['torch'] and platform.machine() in facts['devices']
    assert facts['devices'].endswith('; Card (sm_90, 80 GiB)')
    assert facts['kernels, cpu'] == 'available' and facts['kernels, cuda'] == 'not available: no driver'
    assert 'TIMM_PAF_KERNELS=reference' in facts['variables'].split()
    activations = facts['activations'].split(': ')[1].split(', ')
    assert facts['activations'].startswith(f'{len(activations)} ') and 'pssilu' in activations
    architectures = facts['models'].split(': ')[1].split(', ')
    assert all(timm.is_model(f'{name}_{act}') for name in architectures for act in activations)
