"""Networks for the tests, and the classes of RobustBench."""
import ast
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import timm

import timm_paf  # noqa: F401

SMALL = ['resnet18', 'resnet50', 'preact_resnet18', 'wrn10_2', 'vgg11', 'vgg11_bn', 'resnet18_224']
SLOW = ['resnet50', 'preact_resnet18', 'vgg11']  # another small network runs the same code
LARGE = [
    name.removesuffix('_relu')
    for module in ('cifar_resnet', 'preact_resnet', 'wide_resnet', 'cifar_vgg', 'imagenet_resnet')
    for name in timm.list_models('*_relu', module=module) if name.removesuffix('_relu') not in SMALL]


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
