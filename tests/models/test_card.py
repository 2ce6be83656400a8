import json
import re

import pytest
import timm
import torch

from tests.models.conftest import CIFAR10, assert_same_logits, randomised
from timm_paf.activations import ParametricActivation, convert_activations
from timm_paf.attacks import Normalized
from timm_paf.models import model_card, save_for_hf

REPORT = {
    'clean': {'correct': 354, 'total': 360, 'attack': 'none'},
    'pgd': {'correct': 275, 'total': 360, 'attack': 'PGD-20', 'norm': 'Linf', 'eps': '8/255', 'steps': 20},
    'autoattack': {'correct': 87, 'total': 128, 'attack': 'AutoAttack', 'norm': 'Linf', 'eps': '8/255'},
    'dataset': 'digits', 'split': 'test', 'model': 'wrn10_2_pssilu'}


def loaded(source, path):
    """The model built without the options of the source, which come with its weights."""
    torch.save(source.state_dict(), path)
    return timm.create_model(
        'wrn10_2_pssilu', pretrained=True, pretrained_cfg_overlay=dict(file=str(path))).eval()


@pytest.mark.parametrize('names', [None, ['cat', 'dog', 'emu']], ids=str)
def test_class_names_of_the_report_stay_with_the_model(tmp_path, names):
    model = randomised(timm.create_model('wrn10_2_relu', num_classes=3))
    report = REPORT if names is None else {**REPORT, 'class_names': names}
    folder = save_for_hf(model, tmp_path / 'model', training_data='animals', report=report)
    assert json.loads((folder / 'config.json').read_text()).get('label_names') == names
    cfg = timm.create_model(f'local-dir:{folder}', pretrained=True).pretrained_cfg
    assert cfg.get('label_names') == names
    assert ('cat, dog, emu' in (folder / 'README.md').read_text()) == bool(names)
    with pytest.raises(ValueError, match='2 class names for a model of 3 classes'):
        save_for_hf(model, tmp_path / 'other', training_data='animals', report={**REPORT, 'class_names': ['a', 'b']})
    assert not (tmp_path / 'other').exists()


ROUND_TRIPS = {
    **{name: dict(name=name) for name in ('wrn10_2_softplus', 'wrn10_2_pssilu', 'wrn10_2_ssilu', 'resnet18_psoftplus')},
    'grey, 7 classes': dict(name='wrn10_2_pssilu', in_chans=1, num_classes=7),
    'constant beta': dict(name='wrn10_2_pssilu', act_kwargs=dict(learnable={'beta': False}, beta=0.2)),
    'DeepMind': dict(name='wrn10_2_silu', pad_type='same', **CIFAR10),
    'one per place': dict(name='wrn10_2_relu', act_layer='pssilu'),
    'stock, shared': dict(name='resnet18', act_layer='shared_pssilu', num_classes=10),
}


@pytest.mark.parametrize('case', ROUND_TRIPS)
def test_round_trip(tmp_path, case):
    kwargs = dict(ROUND_TRIPS[case])
    model = randomised(timm.create_model(kwargs.pop('name'), **kwargs))
    recorded = {k: v for k, v in kwargs.items() if k in ('act_layer', 'act_kwargs')}  # timm before 1.0.29 records none
    folder = save_for_hf(model, tmp_path / 'model', training_data='digits', model_args=recorded)
    assert sorted(path.name for path in folder.iterdir()) == ['README.md', 'config.json', 'model.safetensors']
    other = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert_same_logits(model, other, rtol=0)
    learns = [{name for name, p in m.named_parameters() if p.requires_grad} for m in (model, other)]
    assert learns[0] == learns[1]


CONVERTED = {
    'network': ('resnet18', dict(num_classes=10), dict()),
    'stage, constant': ('resnet18', dict(in_chans=1), dict(sharing='stage', learnable={'alpha': False})),
    'channel': ('wrn10_2_relu', dict(pad_type='same', **CIFAR10), dict(sharing='channel')),
    'some places': ('mobilenetv3_small_050', dict(num_classes=4), dict(sharing='layer', match=torch.nn.ReLU)),
    'transformer': ('vit_tiny_patch16_224', dict(img_size=32, num_classes=4), dict(sharing='layer')),
    'twice': ('wrn10_2_pssilu', {}, dict(match=ParametricActivation)),
    'normalised': ('resnet18', dict(num_classes=10), dict(sharing='stage')),
}


@pytest.mark.parametrize('case', CONVERTED)
def test_converted_model_loads_by_the_command_on_its_card(tmp_path, case):
    name, kwargs, conversion = CONVERTED[case]
    model = timm.create_model(name, **kwargs)
    example = torch.rand(1, model.in_chans, 32, 32)
    convert_activations(model, 'psilu', example_input=example, **conversion)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05).add_(0.01)
    if case == 'normalised':
        model = Normalized(model, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    for folder in ('first', 'again'):  # what was loaded can be saved again
        more = {'img_size': 32} if case == 'transformer' else None  # timm before 1.0.29 does not record it
        saved = save_for_hf(model.eval(), tmp_path / folder, training_data='digits', model_args=more)
        text = (saved / 'README.md').read_text()
        assert f'Architecture:** {name}' in text
        names = {'x': example}
        exec(re.search(r'```python\n(.*?)```', text, re.DOTALL)[1], names)
        other = names['model']
        assert torch.equal(names['logits'], model(example))
        assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]
        model = other
    other = timm.create_model(f'local-dir:{tmp_path / "again"}', pretrained=True, num_classes=3).eval()
    assert other(example).shape == (1, 3)


@pytest.mark.parametrize('missing', ['layer1.0.act9', 'layer9.0.act1'])
def test_a_place_that_another_release_of_timm_does_not_have_is_named(missing):
    activations = [dict(name='psilu', places=['act1', missing])]
    with pytest.raises(ValueError, match=f"resnet18: ResNet has no place '{missing}'.*release of timm"):
        timm.create_model('paf_converted', base='resnet18', activations=activations)


def test_a_model_that_timm_cannot_build_again_is_not_saved(tmp_path):
    model = timm.create_model('resnet18', num_classes=10)
    model.layer4 = torch.nn.Identity()
    with pytest.raises(ValueError, match=r'layer4\.0'):
        save_for_hf(model, tmp_path / 'hub', training_data='digits')
    assert not (tmp_path / 'hub').exists()


def test_round_trip_with_timms_own_function(tmp_path):
    source = randomised(timm.create_model('wrn10_2_pssilu', pad_type='same', **CIFAR10))
    timm.models.save_for_hf(loaded(source, tmp_path / 'published.pt'), str(tmp_path / 'hub'), safe_serialization=True)
    other = timm.create_model(f'local-dir:{tmp_path / "hub"}', pretrained=True).eval()
    assert_same_logits(source, other, rtol=0)


def test_folder_describes_what_came_with_the_weights(tmp_path):
    source = randomised(timm.create_model('wrn10_2_pssilu', pad_type='same', **CIFAR10))
    folder = save_for_hf(loaded(source, tmp_path / 'published.pt'), tmp_path / 'hub', training_data='CIFAR-10')
    args = json.loads((folder / 'config.json').read_text())['model_args']
    assert args['pad_type'] == 'same' and len(args['input_mean']) == len(args['input_std']) == 3


def test_card_says_what_the_model_is(tmp_path):
    model = timm.create_model('wrn10_2_pssilu', act_kwargs=dict(alpha=2.125, beta=0.25))
    save_for_hf(model, tmp_path, training_data=['digits, train split', 'synthetic digits'], report=REPORT)
    text = (tmp_path / 'README.md').read_text()
    for expected in (
            'PSSiLU: alpha=2.125, beta=0.25', 'digits, train split', 'synthetic digits', 'license: apache-2.0',
            'Clean accuracy:** 98.33 % (354 of 360 images)',
            'PGD-20 accuracy:** 76.39 % (275 of 360 images) in the Linf ball of radius 8/255',
            'AutoAttack accuracy:** 67.97 % (87 of 128 images) in the Linf ball of radius 8/255',
            'import timm_paf', f"timm.create_model('local-dir:{tmp_path}', pretrained=True)", 'digits, test'):
        assert expected in text


@pytest.mark.parametrize('name, kwargs, expected', [
    ('wrn10_2_silu', {}, {'Activation': 'SiLU', 'Robust accuracy': 'not measured', 'Input': 'pixels in [0, 1]'}),
    ('wrn10_2_softplus', {}, {'Activation': 'Softplus'}),
    ('wrn10_2_ssilu', {}, {'Activation': ['SSiLU: beta=0.3 (constant) (`layer1.0.act1`)']}),
    ('wrn10_2_relu', CIFAR10, {'Input': 'pixels in [0, 1]; the network normalises with mean (0.4914, 0.4822, 0.4465) '
                                        'and std (0.2471, 0.2435, 0.2616)'}),
], ids=['silu', 'softplus', 'constant', 'normalised'])
def test_details_of_the_card(name, kwargs, expected):
    details = model_card(timm.create_model(name, **kwargs), training_data='digits')['details']
    assert {key: details[key] for key in expected} == expected


@pytest.mark.parametrize('kwargs, message', [
    (dict(training_data=[]), 'expected the names of the data sets'),
    (dict(training_data='x', report={}), 'expected clean, pgd or autoattack'),
    (dict(training_data='x', report={'dataset': 'digits'}), 'report with dataset'),
    (dict(training_data='x', report={'clean': {'correct': 0.98, 'total': 1}}), 'integers'),
    (dict(training_data='x', report={'clean': {'correct': 3, 'total': 2}}), '0 <= correct <= total'),
    (dict(training_data='x', report={'clean': 98.3}), 'integers'),
], ids=['no data', 'empty', 'no measurement', 'fractions', 'too many', 'number'])
def test_bad_cards_write_nothing(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        save_for_hf(timm.create_model('wrn10_2_relu'), tmp_path / 'model', **kwargs)
    assert not (tmp_path / 'model').exists()
