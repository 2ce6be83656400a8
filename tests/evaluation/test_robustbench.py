"""The model-info file, against the one that RobustBench has for the paper's model."""
import json

import pytest

from timm_paf.evaluation import (
    Accuracy,
    Measurement,
    RobustnessReport,
    TrustCheck,
    TrustReport,
    robustbench_info,
    robustbench_obstacles,
)

# model_info/cifar10/Linf/Dai2021Parameterizing.json
PUBLISHED = {
    'link': 'https://arxiv.org/abs/2110.05626',
    'name': 'Parameterizing Activation Functions for Adversarial Robustness',
    'authors': 'Sihui Dai, Saeed Mahloujifar, Prateek Mittal', 'additional_data': False, 'number_forward_passes': 1,
    'dataset': 'cifar10', 'venue': 'arXiv, Oct 2021', 'architecture': 'WRN-28-10-PSSiLU', 'eps': '8/255',
    'clean_acc': '87.02', 'reported': '61.55', 'autoattack_acc': '61.55',
    'footnote': 'It uses additional ~6M synthetic images in training.',
}
TEXTS = {name: PUBLISHED[name] for name in ('link', 'name', 'venue', 'architecture', 'footnote', 'authors')}


def report(*, clean=(8702, 10000), robust=(6155, 10000), eps='8/255', norm='linf', version='standard', **changes):
    attacked = Measurement(
        accuracy=Accuracy(*robust), attack=f'AutoAttack {version}', norm=norm, eps=eps, details={'version': version})
    return RobustnessReport(**{
        **dict(model='wrn28_10_pssilu', dataset='torch/cifar10', split='test', measurements={
            'clean': Measurement(accuracy=Accuracy(*clean), attack='none'), 'autoattack': attacked}), **changes})


def test_the_papers_entry_comes_out():
    assert robustbench_info(report(), additional_data=False, **TEXTS) == PUBLISHED
    assert robustbench_obstacles(report()) == []
    assert 'footnote' not in robustbench_info(report(), additional_data=False, **{**TEXTS, 'footnote': None})


@pytest.mark.parametrize('changes, expected', [
    (dict(authors=['A B', 'C D']), dict(authors='A B, C D')),
    (dict(architecture=None), dict(architecture='wrn28_10_pssilu')),
    (dict(reported=61.9612), dict(reported='61.96')), (dict(additional_data=True), dict(additional_data=True)),
], ids=['authors', 'architecture', 'reported', 'data'])
def test_settings_reach_the_file(changes, expected):
    info = robustbench_info(report(), **{'additional_data': False, **TEXTS, **changes})
    assert info == {**PUBLISHED, **expected} and json.loads(json.dumps(info)) == info


@pytest.mark.parametrize('measured, changes, message', [
    (report(), dict(venue=' '), 'venue: expected'), (report(), dict(link='', name=''), 'link, name'),
    (RobustnessReport(measurements={}), {}, 'no measurement clean and autoattack')], ids=['blank', 'two', 'accuracies'])
def test_what_an_entry_needs(measured, changes, message):
    with pytest.raises(ValueError, match=message):
        robustbench_info(measured, **{'additional_data': False, **TEXTS, **changes})


WARNING = TrustReport(
    checks=(TrustCheck(name='black box', status='warn', finding='', meaning=''),), images=1, norm='linf', eps='8/255',
    seed=0, forwards=1, backwards=1, square_images=0, seconds=0.)


@pytest.mark.parametrize('changes, message', [
    (dict(dataset='digits'), 'no data set digits'), (dict(eps='0.031'), '8/255 for cifar10 in linf, not 0.031'),
    (dict(norm='l1'), 'no leaderboard for cifar10 in l1'), (dict(robust=(600, 1000)), '10000 test images, not 1000'),
    (dict(robust=(600, 1000)), 'clean accuracy is measured on 10000'),
    (dict(version='rand'), 'AutoAttack standard, not rand'), (dict(split='val'), 'not val'),
    (dict(trust=WARNING), 'trust checks warn: black box'),
], ids=['data', 'eps', 'norm', 'subset', 'counts', 'version', 'split', 'trust'])
def test_what_the_leaderboard_would_not_take(changes, message):
    assert any(message in obstacle for obstacle in robustbench_obstacles(report(**changes)))
