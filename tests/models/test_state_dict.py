"""Where a network is in a file: wrappers of other trainers, their normalisation, and parameters that are no PAF's."""
import argparse
import logging

import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.models.conftest import CIFAR10, randomised
from timm_paf import convert_activations
from timm_paf.attacks import Normalized
from timm_paf.engine import TrainConfig, Trainer, ValidateConfig, measure
from timm_paf.models import checkpoint_normalization, load_weights
from timm_paf.models.published import PIXELS
from timm_paf.models.state_dict import fit_state_dict

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])


def network(name='wrn10_2_pssilu', **kwargs):
    return randomised(timm.create_model(name, **kwargs))


def under(weights, *prefixes):
    return {prefix + key: value for prefix in prefixes for key, value in weights.items()}


def compiled_inside(weights):
    return {key.replace('layer1.0.', 'layer1._orig_mod.0._fsdp_wrapped_module.'): v for key, v in weights.items()}


BUFFERS = {'0.mean': MEAN, '0.std': STD}
MADRY = {'module.normalizer.new_mean': MEAN.view(3, 1, 1), 'module.normalizer.new_std': STD.view(3, 1, 1),
         'module.attacker.normalize.new_mean': MEAN, 'module.attacker.normalize.new_std': STD}
LAYOUTS = {  # file -> the normalisation in it
    'module': (lambda w: {'state_dict': under(w, 'module.')}, None),
    'Lightning, compiled': (lambda w: {'state_dict': under(w, 'model._orig_mod.')}, None),
    'Lightning, DataParallel': (lambda w: {'state_dict': under(w, 'model.module.')}, None),
    'four deep': (lambda w: {'state_dict': under(w, 'module.model._orig_mod.net.')}, None),
    'compiled and sharded blocks': (lambda w: {'state_dict': compiled_inside(w)}, None),
    'AveragedModel': (lambda w: {'state_dict': {**under(w, 'module.'), 'n_averaged': torch.tensor(3)}}, None),
    'AveragedModel in Lightning': (lambda w: {**under(w, 'swa.module.'), 'swa.n_averaged': torch.tensor(3)}, None),
    'Lightning with a criterion': (lambda w: {'state_dict': {**under(w, 'model.'), 'loss.weight': MEAN}}, None),
    'pytorch-cifar': (lambda w: {'net': under(w, 'module.'), 'acc': 91.2, 'epoch': 3}, None),
    'unknown container': (lambda w: {'my_weights': under(w, 'f.'), 'best': 0.9, 'history': {'loss': [1.]}}, None),
    'DM-Improves-AT': (lambda w: {
        'model_state_dict': under(w, 'module.0.'), 'unaveraged_model_state_dict': under(w, 'module.0.')}, None),
    'DM-Improves-AT, normalised': (lambda w: {
        'model_state_dict': under(w, 'module.1.'), 'unaveraged_model_state_dict': under(w, 'module.1.')},
        tuple(CIFAR10.values())),
    'Sequential': (lambda w: {'state_dict': {**under(w, '1.'), **BUFFERS}}, (MEAN, STD)),
    'Sequential, DataParallel, Lightning': (
        lambda w: {'state_dict': under({**under(w, '1.'), **BUFFERS}, 'model.module.')}, (MEAN, STD)),
    'one mean for all channels': (
        lambda w: {**under(w, '1.'), '0.mu': torch.tensor(0.5), '0.sigma': torch.tensor([0.25])}, (0.5, 0.25)),
    'MadryLab': (lambda w: {'model': {**under(w, 'module.model.', 'module.attacker.model.'), **MADRY}}, (MEAN, STD)),
    'Normalized': (lambda w: {**under(w, 'model.'), 'mean': MEAN, 'std': STD}, (MEAN, STD)),
    'next to the weights': (lambda w: {'state_dict': w, 'mean': MEAN.tolist(), 'std': STD.tolist()}, (MEAN, STD)),
    "timm's train.py --mean --std": (lambda w: {
        'state_dict': w, 'args': argparse.Namespace(mean=MEAN.tolist(), std=STD.tolist())}, (MEAN, STD)),
    "timm's train.py": (lambda w: {'state_dict': w, 'args': argparse.Namespace(mean=None, std=None)}, None),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_files_of_other_trainers(tmp_path, layout):
    write, statistics = LAYOUTS[layout]
    source, model = network(), timm.create_model('wrn10_2_pssilu').eval()
    torch.save(write(source.state_dict()), tmp_path / 'c.pt')
    mean, std = (torch.as_tensor(each).view(-1, 1, 1) for each in statistics or (0., 1.))
    stated = checkpoint_normalization(tmp_path / 'c.pt', model)
    # None where another layer may come first; the models of this package are known to take pixels as they are
    assert statistics is not None or stated in (None, PIXELS)
    assert statistics is None or stated not in (None, PIXELS)
    assert 'Normalization' not in str(model)
    load_weights(model, tmp_path / 'c.pt')
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(x), source((x - mean) / std))
        if not layout.startswith(('DM-Improves-AT, n', 'next to', "timm's")):  # timm passes on the weights alone
            overlay = dict(file=str(tmp_path / 'c.pt'))
            other = timm.create_model('wrn10_2_pssilu', pretrained=True, pretrained_cfg_overlay=overlay).eval()
            torch.testing.assert_close(other(x), model(x))


@pytest.mark.parametrize('wrap', [
    nn.DataParallel, AveragedModel, lambda model: torch.compile(model, backend='eager'),
    lambda model: nn.DataParallel(Normalized(model, MEAN.tolist(), STD.tolist()))],
    ids=['DataParallel', 'AveragedModel', 'compiled', 'Normalized'])
def test_the_model_may_be_in_a_wrapper(tmp_path, wrap):
    source, model = network(), timm.create_model('wrn10_2_pssilu')
    for content in (source.state_dict(), wrap(source).state_dict()):
        torch.save(content, tmp_path / 'c.pt')
        target = wrap(model)
        load_weights(target, tmp_path / 'c.pt')
        assert all(torch.equal(value, wrap(source).state_dict()[key]) for key, value in target.state_dict().items())


def test_a_model_that_cannot_normalise_says_how(tmp_path):
    source = network('resnet18', num_classes=10)  # timm's
    torch.save(Normalized(source, MEAN.tolist(), STD.tolist()).state_dict(), tmp_path / 'c.pt')
    model = timm.create_model('resnet18', num_classes=10).eval()
    with pytest.raises(ValueError, match=r'Normalized\(model, mean, std\)'):
        load_weights(model, tmp_path / 'c.pt')
    wrapped = Normalized(model, *checkpoint_normalization(tmp_path / 'c.pt', model)).eval()
    load_weights(wrapped, tmp_path / 'c.pt')
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(wrapped(x), source((x - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)))
    with pytest.raises(ValueError, match=r'the file normalises with .*0\.5, 0\.4.* the model with .*0\.1'):
        load_weights(Normalized(model, [0.1] * 3, [0.2] * 3), tmp_path / 'c.pt')


@pytest.mark.parametrize('change, words', [
    (lambda w: {**under(w, 'student.'), **under({k: v + 1 for k, v in w.items()}, 'net.')}, ['student.', 'net.']),
    (lambda w: {**under(w, '1.'), **BUFFERS, '2.mean': MEAN + 0.1, '2.std': STD}, ['0.mean', '2.mean']),
    (lambda w: {'encoder.weight': MEAN, 'head': STD}, ['conv1.weight is missing', 'encoder.weight, head']),
    (lambda w: {k: v for k, v in under(w, 'm.').items() if 'conv2' not in k}, [
        'layer1.0.conv2.weight', 'layer2.0.conv2.weight', 'layer3.0.conv2.weight', 'under m.']),
    (lambda w: {**w, 'extra.alpha': MEAN, 'extra.weight': MEAN}, ['extra.alpha is unknown', 'extra.weight is unknown']),
], ids=['two networks', 'two normalisations', 'other names', 'three of the keys', 'more than the network'])
def test_what_does_not_load_is_named_in_one_line(tmp_path, change, words):
    model = timm.create_model('wrn10_2_pssilu')
    before = str(model)
    torch.save({'state_dict': change(network().state_dict())}, tmp_path / 'c.pt')
    with pytest.raises(ValueError, match='does not fit') as caught:
        load_weights(model, tmp_path / 'c.pt')
    assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value)
    assert str(model) == before


@pytest.mark.parametrize('layout, warns', [
    ('Lightning with a criterion', 'loss.weight'), ('DM-Improves-AT, normalised', 'CIFAR-10'), ('module', None),
    ('AveragedModel', None), ('MadryLab', None)])
def test_what_is_left_out_or_assumed_is_said(tmp_path, caplog, layout, warns):
    torch.save(LAYOUTS[layout][0](network().state_dict()), tmp_path / 'c.pt')
    with caplog.at_level(logging.WARNING):
        load_weights(timm.create_model('wrn10_2_pssilu'), tmp_path / 'c.pt')
    assert len(caplog.records) == (warns is not None) and (warns is None or warns in caplog.text)


class Gated(nn.Module):
    """A user's network with parameters of the same names as those of parametric activations."""

    def __init__(self):
        super().__init__()
        self.fc, self.act, self.out = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
        self.alpha, self.activation = nn.Parameter(torch.ones(1)), nn.ParameterDict({'beta': torch.zeros(1)})

    def forward(self, x):
        return self.out(self.alpha * self.act(self.fc(x)) + self.activation['beta'])


@pytest.mark.parametrize('sharing', [None, 'network', 'layer'], ids=str)
@pytest.mark.parametrize('build', [
    Gated, lambda: timm.create_model('resmlp_12_224', img_size=32, num_classes=10),
    lambda: timm.create_model('efficientvim_m1', num_classes=10)], ids=['own module', 'ResMLP', 'EfficientViM'])
def test_parameters_called_alpha_or_beta_that_are_not_activations(tmp_path, build, sharing):
    source, model = build(), build()
    for each in (source, model):
        if sharing is not None:
            convert_activations(each, 'pssilu', sharing=sharing)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1)
    torch.save({'state_dict': under(source.state_dict(), 'module.')}, tmp_path / 'c.pt')
    load_weights(model, tmp_path / 'c.pt')
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
    if sharing is not None:
        with pytest.raises(ValueError, match='the model has none'):
            fit_state_dict(source.state_dict(), build())


class GatedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)
        self.alpha, self.beta = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.fc((self.alpha * self.conv(x) + self.beta).relu().mean((2, 3)))


def test_own_model_with_alpha_and_beta_trains_saves_loads_and_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TIMM_PAF_CACHE', str(tmp_path / 'cache'))
    settings = dict(dataset='digits', autoattack='none', pgd_steps=1, output=str(tmp_path))
    config = TrainConfig(
        **settings, model='own', epochs=1, updates_per_epoch=2, attack_steps=1, experiment='run', model_ema=True)
    trainer = Trainer(config, model=GatedConv())
    trainer.fit()
    report, again = trainer.evaluate(), GatedConv()
    assert load_weights(again, tmp_path / 'run' / 'model_best.pth.tar') == 'state_dict_ema'
    found = measure(ValidateConfig(**{
        **settings, 'output': None, 'checkpoint': str(tmp_path / 'run' / 'model_best.pth.tar')}), model=GatedConv())
    assert found.measurements['clean'].accuracy == report.measurements['clean'].accuracy
