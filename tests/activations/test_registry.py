import copy
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from timm.layers import create_act_layer, get_act_layer, set_layer_config
from torch import nn

from timm_paf.activations import ACTIVATIONS, REGISTERED, register_activations
from timm_paf.activations.sharing import shared_layers

PAPER = ['prelu0', 'preluplus', 'pelu', 'peluplus', 'psilu', 'psoftplus', 'reblu', 'ssilu', 'pssilu_fixed', 'pssilu']


def test_every_name_of_the_paper_is_there():
    assert [name for name in ACTIVATIONS if name in PAPER] == PAPER
    for name in [*PAPER, 'softplus']:
        assert get_act_layer(name) is REGISTERED[name]
        assert get_act_layer(name.upper()) is REGISTERED[name]


class MLP(nn.Module):
    """A network with an activation by name, as timm's own tests of activations have it."""

    def __init__(self, name, inplace):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(20, 10), nn.Linear(10, 5)
        self.act = create_act_layer(name, inplace=inplace)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


@pytest.mark.parametrize('inplace', [True, False, None], ids=str)
@pytest.mark.parametrize('name', [*REGISTERED, *shared_layers()])
def test_a_name_behaves_as_the_names_of_timm_do(name, inplace):
    """In any case of letters, under every setting of timm, inside and outside of a model, scripted or not."""
    model, x = MLP(name, inplace), torch.rand(4, 20) * 10
    kind = REGISTERED[name.removeprefix('shared_')]
    results, made = [model(x)], [model.act]
    for setting in (None, 'scriptable', 'exportable', 'no_jit'):
        for spelling in (name, name.upper(), name.title()):
            with set_layer_config(**{setting: True} if setting else {}):
                model.act = create_act_layer(spelling, inplace=inplace)
            made.append(model.act)
            results.append(model(x))
    assert all(type(act) is kind for act in made) and len({id(act) for act in made}) == len(made)
    results += [torch.jit.script(model)(x), copy.deepcopy(model)(x), pickle.loads(pickle.dumps(model))(x)]
    for result in results:
        torch.testing.assert_close(result, results[0])
    model(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.fc1.parameters())


def test_import_overwrites_nothing_prints_nothing_and_may_be_repeated():
    code = '''
import warnings; warnings.simplefilter('error')
import timm
from timm.layers import create_act
before = {**create_act._ACT_LAYER_DEFAULT}, {**create_act._ACT_LAYER_ME}, timm.list_models()
entrypoints = {name: timm.model_entrypoint(name) for name in before[2]}
import timm_paf, importlib
importlib.reload(timm_paf)
importlib.reload(timm_paf.models.cifar_resnet)
assert all(create_act._ACT_LAYER_DEFAULT[k] is v for k, v in before[0].items())
assert create_act._ACT_LAYER_ME == before[1]
assert all(timm.model_entrypoint(name) is entry for name, entry in entrypoints.items())
assert set(before[2]) < set(timm.list_models())
warnings.simplefilter('ignore')  # what libraries leave to their exit is theirs
'''
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_a_name_that_timm_takes_later_stays_timms():
    mine = nn.Hardtanh
    tables = SimpleNamespace(_ACT_LAYER_DEFAULT={'relu': nn.ReLU, 'pssilu': mine}, _ACT_LAYER_ME={'psilu': mine})
    register_activations(tables)
    assert tables._ACT_LAYER_DEFAULT['pssilu'] is mine
    assert 'psilu' not in tables._ACT_LAYER_DEFAULT
    assert tables._ACT_LAYER_DEFAULT['reblu'] is REGISTERED['reblu']


@pytest.mark.parametrize('tables', [
    SimpleNamespace(), SimpleNamespace(_ACT_LAYER_DEFAULT=[], _ACT_LAYER_ME={}),
    SimpleNamespace(_ACT_LAYER_DEFAULT={}, _ACT_LAYER_ME={}),
], ids=['absent', 'other type', 'empty'])
def test_unexpected_tables_are_a_clear_error(tables):
    with pytest.raises(RuntimeError, match=f'timm {timm.__version__} does not keep its activation layers'):
        register_activations(tables)
