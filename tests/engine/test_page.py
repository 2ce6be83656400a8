"""The page of a training run: its content, and that it needs neither other files nor matplotlib."""
import re
import sys

import pytest
import timm
import torch

import timm_paf
from timm_paf.engine import TrainConfig
from timm_paf.engine.page import shapes_of, training_page
from timm_paf.evaluation import Accuracy, Measurement, RobustnessReport

ROWS = [
    {'epoch': 0, 'train_loss': 2.5, 'train_robust': 0., 'eval_clean': 60., 'eval_robust': 25., 'act_alpha': 1.5,
     'act_beta': 0.1, 'act_alpha_grad': 3., 'lr': 0.1},
    {'epoch': 1, 'train_loss': 1.25, 'train_robust': 40., 'eval_clean': None, 'eval_robust': None, 'act_alpha': 2.,
     'act_beta': 0.2, 'act_alpha_grad': 3., 'lr': 0.05},
    {'epoch': 2, 'train_loss': float('nan'), 'train_robust': 50., 'eval_clean': 80., 'eval_robust': 45.,
     'act_alpha': 2., 'act_beta': 0.2, 'lr': 0.025},
]
SELECTION = {'metric': 'robust', 'selected': 'raw', 'raw': {
    'best': {'epoch': 1, 'robust': 47.}, 'last': {'epoch': 2, 'robust': 45.}, 'gap': 2.}}


def page(before, after, **settings):
    report = RobustnessReport(
        measurements={'clean': Measurement(accuracy=Accuracy(9, 12), attack='none')}, model='<b>net</b>',
        dataset='digits', split='test')
    return training_page(
        report, ROWS, settings={'experiment': 'run', 'lr': 0.1, 'synthetic': ['a', 'b'], **settings},
        selection=SELECTION, before=before, after=after)


def net(alpha=None, **kwargs):
    model = timm.create_model('wrn10_2_pssilu', in_chans=1, **kwargs)
    if alpha is not None:
        timm_paf.fix_parameters(model, {'alpha': alpha})
    return model


def test_content():
    text = page(net(), net(alpha=2.25), data_dir='<script>')
    assert not re.search(r'(src|href)="(?!data:|#)', text) and '<script' not in text
    assert '&lt;b&gt;net&lt;/b&gt; trained on digits' in text and '9 of 12 images' in text
    assert 'epoch 2, with 47.0 % robust' in text and 'is 2.0 percentage points lower' in text
    assert re.search(r'<td[^>]*>alpha</td><td[^>]*>1.000</td><td[^>]*>2.250</td>', text)
    assert re.search(r'<td[^>]*>1</td><td[^>]*>2.500</td><td[^>]*>0.0</td>', text)  # a value of 0 is shown
    assert text.count('<svg') == 7  # loss and accuracy, the activation and two derivatives, alpha and beta
    assert re.search(r'<td[^>]*>synthetic</td><td[^>]*>a b</td>', text)


@pytest.mark.parametrize('changes', [{}, {'lr_base': 0.2, 'synthetic': ('generated',), 'epochs': 12, 'hflip': True}])
def test_settings_that_differ_from_the_defaults(changes):
    relu = timm.create_model('wrn10_2_relu', in_chans=1)
    text = page(relu, relu, **{'experiment': None, 'lr': None, **TrainConfig(**changes).to_dict()})
    _, differing, everything = re.split('<summary>(?:Settings that differ|All settings)', text)
    given = TrainConfig(**changes)
    expected = {name for name in vars(given) if getattr(given, name) != getattr(TrainConfig(), name)}
    # the share of synthetic images follows from the synthetic images, and is 0 rather than unset without them
    assert {name for name in vars(given) if f'>{name}</td>' in differing} == expected | {'synthetic_fraction'}
    assert {name for name in vars(given) if f'>{name}</td>' in everything} == vars(given).keys() - {'class_names'}


def test_shapes_before_and_after():
    shapes = shapes_of(net(), net(alpha=2.))
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(shapes['before'](x), torch.nn.functional.silu(x))  # PSSiLU starts as SiLU
    torch.testing.assert_close(shapes['after'](x), x * torch.sigmoid(2 * x))


@pytest.mark.parametrize('sharing', ['stage', 'channel'])
def test_many_activations(sharing):
    model = net(act_sharing=sharing)
    assert 2 <= len(shapes_of(model, model)) <= 7
    assert page(model, model).count('<svg') == 7


def test_without_matplotlib_the_tables_remain(monkeypatch):
    for name in [name for name in sys.modules if name.split('.')[0] == 'matplotlib']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    text = page(net(), net())
    assert '<svg' not in text and text.count('No figure: ') == 3 and 'The last epoch is' in text
    assert '<h2>Activation</h2>' in text
    relu = timm.create_model('wrn10_2_relu', in_chans=1)  # no parametric activation
    assert '<h2>Activation</h2>' not in page(relu, relu)
