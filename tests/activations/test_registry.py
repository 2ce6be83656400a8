import subprocess
import sys
from types import SimpleNamespace

import pytest
import timm
from timm.layers import create_act_layer, get_act_layer, set_exportable, set_scriptable
from torch import nn

from timm_paf.activations import ACTIVATIONS, REGISTERED, register_activations

PAPER = ['prelu0', 'preluplus', 'pelu', 'peluplus', 'psilu', 'psoftplus', 'reblu', 'ssilu', 'pssilu_fixed', 'pssilu']


def test_every_name_of_the_paper_is_there():
    assert [name for name in ACTIVATIONS if name in PAPER] == PAPER
    for name in [*PAPER, 'softplus']:
        assert get_act_layer(name) is REGISTERED[name]
        assert get_act_layer(name.upper()) is REGISTERED[name]


@pytest.mark.parametrize('setting', [set_exportable, set_scriptable], ids=['exportable', 'scriptable'])
def test_export_settings_of_timm_find_them(setting):
    with setting(True):
        assert all(isinstance(create_act_layer(name, inplace=True), ACTIVATIONS[name]) for name in PAPER)


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
