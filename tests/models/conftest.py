"""Networks for the tests, and the classes of RobustBench."""
import ast
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import timm_paf  # noqa: F401

SMALL = ['resnet18', 'resnet50', 'preact_resnet18', 'wrn10_2', 'vgg11', 'vgg11_bn', 'resnet18_224']
SLOW = ['resnet50', 'preact_resnet18', 'vgg11']  # another small network runs the same code
LARGE = [
    name.removesuffix('_relu')
    for module in ('cifar_resnet', 'preact_resnet', 'wide_resnet', 'cifar_vgg', 'imagenet_resnet')
    for name in timm.list_models('*_relu', module=module) if name.removesuffix('_relu') not in SMALL]
CIFAR10 = dict(input_mean=(0.4914, 0.4822, 0.4465), input_std=(0.2471, 0.2435, 0.2616))


def randomised(model):
    """Moves every tensor from its initial value, so that a swapped, missing or misplaced one is detected."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if name == 'alpha':
                nn.init.uniform_(tensor, 0.6, 1.8)
            elif name == 'beta':
                nn.init.uniform_(tensor, -0.4, -0.1)
    return model.eval()


def assert_same_logits(model, other, *, size=32, rtol=1e-5):
    x = torch.rand(3, getattr(model, 'in_chans', 3), size, size)
    with torch.no_grad():
        ours, theirs = model(x), other(x)
    assert (ours - theirs).abs().max() <= rtol * theirs.abs().max()
    assert theirs.std() > 1e-3  # logits that say something


@pytest.fixture(params=[*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def arch(request):
    """Every architecture, the large ones in the slow run."""
    return request.param


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SMALL])
def small(request):
    """One architecture of every family, and one or two more in the slow run."""
    return request.param


@pytest.fixture(params=['relu', 'pssilu'])
def act(request):
    """ReLU, in place and one per place; and one shared module."""
    return request.param


@pytest.fixture(scope='session')
def robustbench():
    """Loads single files of an installed RobustBench by path: its top level cannot be imported next to pyautoattack.

    Its pinned dependencies exclude this package's timm, so it is not among the test requirements; install it with
    `pip install --no-deps robustbench==1.1.1`. With TIMM_PAF_REQUIRE_ROBUSTBENCH=1 its absence is a failure.
    """
    found = importlib.util.find_spec('robustbench')
    if found is None:
        message = 'RobustBench is not installed: pip install --no-deps robustbench==1.1.1'
        if os.environ.get('TIMM_PAF_REQUIRE_ROBUSTBENCH'):
            pytest.fail(message)
        pytest.skip(message)
    root = Path(found.submodule_search_locations[0])

    def load(path):
        name = f'_robustbench_{Path(path).stem}'
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, root / path)
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        return sys.modules[name]

    def function(path, name, **names):
        """One function of a file, without what the file imports."""
        tree = ast.parse((root / path).read_text())
        tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        assert len(tree.body) == 1
        exec(compile(tree, str(root / path), 'exec'), names)
        return names[name]

    load.root, load.function = root, function
    return load
