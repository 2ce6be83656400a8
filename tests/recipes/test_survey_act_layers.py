"""The survey on a model of each outcome, and its page."""
import warnings

import pytest
import survey_act_layers
import timm
import torch
from survey_act_layers import OUTCOMES, ModelResult, main, markdown, model_names, running_activations, survey_model
from torch import nn

from timm_paf.activations import PSSiLU


@pytest.mark.parametrize('name, outcome, places', [
    ('test_vit', 'keyword', 6), ('seresnet18', 'keyword in part', 25), ('xcit_nano_12_p16_224', 'function', 29),
    ('coatnet_pico_rw_224', 'conversion', None), ('vgg11', 'function', 10), ('nf_resnet26', 'conversion', 25),
    ('resnetv2_50d_frn', 'untouched', 0),
])
def test_outcomes(name, outcome, places):
    result = survey_model(name, 'pssilu')
    assert result.outcome == outcome and not result.errors
    assert places is None or result.places == places
    assert any('Sigmoid' in kind for kind in result.running) == (name in ('seresnet18', 'coatnet_pico_rw_224'))


def test_running_functions_are_those_outside_of_parametric_activations():
    model = nn.Sequential(PSSiLU(), nn.Sequential(), nn.Sigmoid(), nn.ReLU(), nn.PReLU(), nn.Linear(2, 2))
    for _ in range(2):  # the hooks of the first pass are removed
        assert running_activations(model, torch.rand(1, 2)) == ['prelu in PReLU', 'relu in ReLU', 'sigmoid in Sigmoid']


def test_a_model_that_fails_is_a_row(monkeypatch, capsys):
    build = timm.create_model

    def create_model(name, **kwargs):
        if name == 'test_resnet':
            raise RuntimeError('broken\nin two lines')
        warnings.warn('noise', stacklevel=1)
        return build(name, **kwargs)

    monkeypatch.setattr(survey_act_layers.timm, 'create_model', create_model)
    assert main(['--filter', 'test_resnet', 'test_vit']) == 0
    page, noise = capsys.readouterr()
    assert '- test_resnet: `RuntimeError: broken`' in page and '| fails | 1 |' in page and '| keyword | 1 |' in page
    assert noise == '2/2 models\n'


def test_only_models_of_timm():
    names = model_names(('*resnet18*',))
    assert 'resnet18' in names and not [name for name in names if 'pssilu' in name]


def test_the_page_is_written(tmp_path, capsys):
    page = tmp_path / 'a.md'
    assert main(['--filter', 'test_vit', '--activation', 'prelu0', '--output', str(page)]) == 0
    assert not capsys.readouterr().out
    text = page.read_text()
    assert "`python recipes/survey_act_layers.py --filter 'test_vit' --activation prelu0 --output " in text
    assert f'timm {timm.__version__}' in text and "`act_layer='prelu0'`" in text


def test_page_names_what_differs():
    results = [
        ModelResult(name='a', family='f', outcome='keyword', places=3),
        ModelResult(name='b', family='f', outcome='keyword', places=5, running=['relu in Block']),
        ModelResult(name='c', family='f', outcome='conversion', refusal='TypeError: no', places=7),
        ModelResult(name='d', family='g', outcome='untouched', refusal='TypeError: no', running=['sigmoid in Gate']),
    ]
    page = markdown(results, 'pssilu', 'x')
    assert '| f | 3 | keyword 2, conversion 1 | 3–7 | relu in Block |' in page
    assert '- **f** (else: keyword)\n  - conversion: `c`' in page
    assert '| g | 1 | untouched | 0 | *sigmoid in Gate* |' in page and '- `d`: *sigmoid in Gate*' in page
    assert '- f (1): `TypeError: no`' in page and '## Errors' not in page
    assert {result.outcome for result in results} < set(OUTCOMES)


@pytest.mark.parametrize('argv, message', [
    (['--filter', 'nothing_such'], "try '*nothing_such*'"),
    (['--filter', 'wrn10_2_pssilu'], 'no model of timm itself'), (['--output', 'a.txt'], 'ends in .md'),
    (['--output', 'nowhere/a.md'], 'there is no folder nowhere'), (['--activation', 'relu'], 'expected one of prelu0'),
], ids=['pattern', 'ours', 'suffix', 'folder', 'activation'])
def test_mistakes(argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err
