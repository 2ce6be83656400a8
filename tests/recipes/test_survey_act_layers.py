"""Survey of timm's models: a model of each outcome, and the page."""
import pytest
import survey_act_layers
import torch
from survey_act_layers import Recorder, Result, main, markdown, survey_model
from torch import nn

from timm_paf.activations import PSSiLU


@pytest.mark.parametrize('name, way, places, running', [
    ('test_vit', 'keyword', 6, set()), ('seresnet18', 'keyword in part', 25, {'sigmoid in Sigmoid'}),
    ('vgg11', 'function', 10, set()), ('resnetv2_50d_frn', 'untouched', 0, {'maximum in FilterResponseNormTlu2d'}),
    ('test_mambaout', 'keyword in part', None, set()), ('convit_tiny', 'conversion', 12, {'sigmoid in GPSA'}),
])
def test_outcomes(name, way, places, running):
    result = survey_model(name)
    assert result.way == way and result.running == running and result.places == (places or result.places)


def test_recorded_functions_are_those_outside_of_parametric_activations():
    model = nn.Sequential(PSSiLU(), nn.Sequential(), nn.Sigmoid(), nn.ReLU(), nn.Linear(2, 2))
    with Recorder(model) as recorder:
        model(torch.rand(1, 2))
    assert recorder.seen == {'relu in ReLU', 'sigmoid in Sigmoid'}


def test_the_page_is_written_and_a_model_that_fails_is_named(tmp_path, monkeypatch, capsys):
    def survey(name):
        if name == 'test_resnet':
            raise RuntimeError('broken')
        return Result(name, 'vision_transformer', 'keyword', 6, set())

    monkeypatch.setattr(survey_act_layers, 'survey_model', survey)
    main(['--filter', 'test_resnet', 'test_vit', 'wrn10_2_pssilu', '--output', str(tmp_path / 'a.md')])
    printed = capsys.readouterr()
    assert printed.out == '' and printed.err == 'test_resnet is left out: RuntimeError: broken\n'
    assert '| keyword | 1 |' in (tmp_path / 'a.md').read_text()


def test_page_names_what_differs():
    page = markdown([
        Result('a', 'f', 'keyword', 3, set()), Result('b', 'f', 'keyword', 5, {'relu in Block'}),
        Result('c', 'f', 'conversion', 7, {'relu in Block'}),
        Result('d', 'g', 'untouched', 0, {'sigmoid in Gate'})], 'x')
    assert '| f | 3 | keyword 2, conversion 1 | 3–7 | relu in Block |' in page
    assert '| g | 1 | untouched | 0 | *sigmoid in Gate* |' in page and page.endswith('\n- f, conversion: `c`')


@pytest.mark.parametrize('argv', [
    ['--filter', 'nothing_such'], ['--filter', 'wrn10_2_pssilu'], ['--output', 'nowhere/a.md']], ids=' '.join)
def test_mistakes_end_with_status_2(argv, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(argv)
    assert argv[1] in capsys.readouterr().err
