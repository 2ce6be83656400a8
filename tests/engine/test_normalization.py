"""Which normalisation a network gets, seen in the number of images that it classifies correctly."""
import json

import numpy as np
import pytest
import timm
import torch
from timm.models import register_model
from tiny_run import open_trainer
from torch import nn

import timm_paf  # noqa: F401
from timm_paf.attacks import Normalized
from timm_paf.engine import Measurement, TrainConfig, Trainer, ValidateConfig
from timm_paf.engine import train as train_command
from timm_paf.engine import validate as validate_command
from timm_paf.engine.model import build_model
from timm_paf.engine.normalization import statistics
from timm_paf.engine.optim import make_optimizer

MEAN, STD = [0.5, 0.5, 0.5], [0.1, 0.1, 0.1]
SAID = 'input normalisation', 'no input normalisation', 'warning: neither'
FLAGS = ['--input-mean', '0.5', '0.5', '0.5', '--input-std', '0.1', '0.1', '0.1']


class Bright(nn.Module):
    """Classes dark and bright, told apart at 0; of pixels in [0, 1] all are bright."""

    def __init__(self, cfg):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 1, 1, bias=False), nn.Linear(1, 2, bias=False)
        nn.init.ones_(self.conv.weight)
        self.fc.weight = nn.Parameter(torch.tensor([[-1.], [1.]]))
        if cfg is not None:
            self.pretrained_cfg = cfg

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


@register_model
def bright_cfg(pretrained=False, **kwargs):
    return Bright(dict(mean=MEAN, std=STD, input_size=(3, 32, 32)))


@register_model
def bright_plain(pretrained=False, **kwargs):
    return Bright(None)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Flags for 40 test images, half of each class."""
    folder, labels = tmp_path_factory.mktemp('data'), np.arange(40) % 2
    images = np.random.default_rng(0).integers(0, 20, (40, 8, 8, 3)) + 80 + 80 * labels[:, None, None, None]
    np.savez(folder / 'images.npz', image=images.astype(np.uint8), label=labels)
    return [
        '--dataset', str(folder / 'images.npz'), '--test-data', str(folder / 'images.npz'), '--num-classes', '2',
        '--val-size', '4', '--eps', '1/255', '--pgd-steps', '1', '--autoattack', 'none', '--device', 'cpu']


def bare():
    return {'state_dict': Bright(None).state_dict()}


def wrapped():
    return {'state_dict': Normalized(Bright(None), MEAN, STD).state_dict()}


def ours(**normalization):
    return {**bare(), 'run': {}, **normalization}


@pytest.mark.parametrize('model, content, flags, correct, note, warning', [
    ('bright_cfg', bare, [], 40, 'pretrained_cfg of bright_cfg', False),
    ('bright_cfg', bare, ['--no-normalize'], 20, '--no-normalize', True),
    ('bright_cfg', bare, FLAGS, 40, '--input-mean', False),
    ('bright_plain', bare, [], 20, 'neither', True),
    ('bright_plain', bare, FLAGS, 40, '--input-mean', False),
    ('bright_plain', wrapped, [], 40, 'from weights.pth', False),
    ('bright_cfg', wrapped, ['--no-normalize'], 20, '--no-normalize', True),
    ('bright_cfg', ours, [], 20, '', True),
    ('bright_cfg', lambda: ours(normalization=None), [], 20, '', True),
], ids=['cfg', 'cfg, off', 'cfg, flags', 'unknown', 'unknown, flags', 'wrapped', 'wrapped, off', 'old run', 'run'])
def test_measurement(model, content, flags, correct, note, warning, data, tmp_path, capsys):
    torch.save(content(), tmp_path / 'weights.pth')
    status = validate_command([
        '--checkpoint', str(tmp_path / 'weights.pth'), '--model', model, *data, '--attack', 'pgd', '--no-trust',
        '--output', str(tmp_path / 'out'), *flags])
    printed = capsys.readouterr().out
    report, page = json.loads((tmp_path / 'out/report.json').read_text()), (tmp_path / 'out/report.html').read_text()
    assert status == 0 and report['clean']['correct'] == correct
    lines = [line for line in printed.splitlines() if line.startswith(SAID)]
    assert len(lines) == (2 if note == 'neither' else bool(note))  # a warning is said again under the table
    assert all(note in line for line in lines)
    assert ('warnings' in report) == ('at chance' in printed) == ('at chance' in page) == warning
    if note == 'neither':  # a guess is compared with what is common
        assert any('40 with' in text and '--input-mean' in text for text in report['warnings'])


@pytest.mark.parametrize('start, flags, expected', [
    ('scratch', [], None), ('scratch', ['--normalize'], MEAN), ('scratch', FLAGS, MEAN), ('bare', [], MEAN),
    ('bare', ['--no-normalize'], None), ('wrapped', [], MEAN), ('pretrained', [], MEAN)])
def test_training_and_what_its_checkpoint_says(start, flags, expected, data, tmp_path, capsys):
    """And a measurement of the checkpoint needs no flag and has nothing to say."""
    if start in ('bare', 'wrapped'):
        torch.save({'bare': bare, 'wrapped': wrapped}[start](), tmp_path / 'start.pth')
        flags = [*flags, '--initial-checkpoint', str(tmp_path / 'start.pth')]
    elif start == 'pretrained':
        flags = [*flags, '--model-kwargs', 'pretrained=true']
    training = [
        '--model', 'bright_cfg', *data, '--epochs', '1', '--batch-size', '18', '--attack-steps', '1', '--lr', '1e-4',
        '--output', str(tmp_path / 'out'), '--experiment', 'run', *flags]
    assert train_command(training) == 0
    printed = capsys.readouterr().out
    said = any(line.startswith(SAID) for line in printed.splitlines())
    assert said == (expected is not None or '--no-normalize' in flags)
    assert ('32x32' in printed) == (start == 'pretrained')
    best = tmp_path / 'out/run/model_best.pth.tar'
    content = torch.load(best, weights_only=True)
    assert content['normalization'] == (None if expected is None else {
        'mean': pytest.approx(MEAN), 'std': pytest.approx(STD)})
    assert list(content['state_dict']) == list((Bright(None) if expected is None else Normalized(
        Bright(None), MEAN, STD)).state_dict())
    clean = json.loads((tmp_path / 'out/run/report.json').read_text())['clean']['correct']
    assert clean == (20 if expected is None else 40)
    assert validate_command([
        '--checkpoint', str(best), *data, '--attack', 'pgd', '--no-trust', '--output', str(tmp_path / 'again')]) == 0
    assert 'warning: neither' not in capsys.readouterr().out
    assert json.loads((tmp_path / 'again/report.json').read_text())['clean']['correct'] == clean


def test_a_run_from_scratch_is_the_model_as_it_was(data, tmp_path):
    argv = ['--model', 'bright_cfg', *data, '--batch-size', '18', '--output', str(tmp_path)]
    assert isinstance(open_trainer(argv).model, Bright)
    assert open_trainer(argv).notes == []
    assert open_trainer(argv).model.pretrained_cfg['mean'] == (0., 0., 0.)  # what a model card says


def test_a_run_that_began_without_these_settings_resumes(data, tmp_path):
    argv = ['--model', 'bright_cfg', *data, '--batch-size', '18', '--output', str(tmp_path)]
    state = open_trainer(argv).state_dict()
    for name in ('input_mean', 'input_std', 'normalize'):
        del state['args'][name]
    open_trainer(argv).load_state_dict(state)
    with pytest.raises(ValueError, match='input_mean: '):
        open_trainer([*argv, *FLAGS]).load_state_dict(state)


def test_own_networks_and_settings_in_python(data, tmp_path):
    images, labels = torch.rand(40, 3, 8, 8), torch.arange(40) % 2
    settings = dict(input_mean=MEAN, input_std=STD, device='cpu', autoattack='none')
    own = Bright(None)
    trainer = Trainer(
        TrainConfig(**settings, batch_size=16, val_size=4, output=str(tmp_path)), model=own, train=(images, labels))
    assert trainer.model.model is own and statistics(trainer.model)[0] == MEAN
    config = TrainConfig(device='cpu', autoattack='none', batch_size=16, val_size=4, output=str(tmp_path))
    notes = [
        Trainer(config, model=each, train=(images, labels)).notes
        for each in (own, Bright(dict(mean=MEAN, std=STD)), Normalized(Bright(dict(mean=MEAN, std=STD)), MEAN, STD))]
    assert notes[0] == notes[2] == [] and 'of_timm' in notes[1][0]
    torch.save(bare(), tmp_path / 'weights.pth')
    measured = Measurement(
        ValidateConfig(**settings, checkpoint=str(tmp_path / 'weights.pth'), eps='1/255'), model=own,
        data=(images, labels))
    assert measured.model.model is own


@pytest.mark.parametrize('settings, message', [
    (dict(input_mean=[0.5]), 'input-std'), (dict(input_mean=[0.5], input_std=[0.]), 'input-std'),
    (dict(input_mean=[123.], input_std=[58.]), '255'),
    (dict(input_mean=[0.5], input_std=[1.], normalize=False), '--no-normalize'),
], ids=str)
def test_bad_settings_are_named(settings, message):
    for config in (TrainConfig, ValidateConfig):
        with pytest.raises(ValueError, match=message):
            config(**settings)


@pytest.mark.parametrize('name', ['resnet18', 'vit_tiny_patch16_224'])
@pytest.mark.parametrize('settings', [
    dict(layer_decay=0.75), dict(filter_bias_and_bn=True), dict(paf_lr_scale=.1), dict(norm_weight_decay=.1)], ids=str)
def test_the_optimizer_sees_the_network_inside(name, settings):
    """Timm's rules for layers and weight decay are about its names."""
    model, sizes = build_model(name, num_classes=4, in_chans=3), []
    for each in (model, Normalized(model, MEAN, STD)):
        groups = make_optimizer(TrainConfig(**settings), each).param_groups
        sizes.append([(len(group['params']), group['weight_decay'], group.get('lr_scale')) for group in groups])
    assert sizes[0] == sizes[1]


def test_grey_images_get_the_mean_over_channels(tmp_path):
    model = timm.create_model('resnet18', num_classes=2, in_chans=1)
    torch.save(model.state_dict(), tmp_path / 'w.pth')
    measured = Measurement(
        ValidateConfig(checkpoint=str(tmp_path / 'w.pth'), model='resnet18', eps='1/255', device='cpu'),
        data=(torch.rand(20, 1, 16, 16), torch.arange(20) % 2))
    assert statistics(measured.model) == ([pytest.approx(0.449, abs=1e-3)], [pytest.approx(0.226, abs=1e-3)])
