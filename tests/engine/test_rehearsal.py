"""The rehearsal: what cannot work is refused before training, and a run with it has the result of one without."""
import io
import sys

import pytest
import timm.optim
import torch
from rich.console import Console
from timm.models import register_model
from tiny_run import prepared, train, updated
from torch import nn

from timm_paf.data import digits_splits
from timm_paf.engine import TrainConfig, Trainer, ValidateConfig
from timm_paf.engine.rehearsal import rehearse_measurement

QUIET = Console(quiet=True)


class Flat(nn.Module):
    """A linear classifier with BatchNorm over single values, which cannot train on one image."""

    def __init__(self, classes=10, pixels=64, answer=lambda self, logits: logits):
        super().__init__()
        self.norm, self.fc, self.answer = nn.BatchNorm1d(pixels), nn.Linear(pixels, classes), answer

    def forward(self, x):
        return self.answer(self, self.fc(self.norm(x.flatten(1))))


@register_model
def tiny_flat(pretrained=False, num_classes=10, in_chans=1, **kwargs):
    return Flat(num_classes)


def refusal(tmp_path, *, model=None, classes=None, test=None, **settings):
    """The message with which a run on the digits is refused; None if it is not."""
    images = digits_splits()
    config = TrainConfig(**{
        'model': 'mine', 'output': str(tmp_path), 'autoattack': 'none', 'device': 'cpu', 'eps': '0.1', 'lr': 0.05,
        'batch_size': 32, 'num_classes': classes, **settings})
    trainer = Trainer(
        config, model=model or Flat(classes or 10), console=QUIET, train=(images.train.images, images.train.labels),
        test=test or (images.test.images, images.test.labels))
    try:
        trainer.rehearse()
    except ValueError as error:
        assert '\n' not in str(error)
        return str(error)
    finally:
        assert list(tmp_path.iterdir()) == []
    return None


ANSWERS = {
    'dict': (lambda self, logits: {'logits': logits}, 'dict'),
    'tuple': (lambda self, logits: (logits, logits), 'tuple'),
    'tuple in training': (lambda self, logits: (logits, logits) if self.training else logits, '--batch-size 32'),
    'one axis': (lambda self, logits: logits.max(1).values, '(2,)'),
    'no gradient': (lambda self, logits: logits.detach(), 'PGD'),
    'NaN': (lambda self, logits: logits * torch.nan, 'NaN'),
    'fine': (lambda self, logits: logits, None),
}


@pytest.mark.parametrize('answer, expected', ANSWERS.values(), ids=ANSWERS.keys())
def test_what_a_model_returns(tmp_path, answer, expected):
    found = refusal(tmp_path, model=Flat(answer=answer))
    assert found is None if expected is None else expected in found


def images(count=20, size=8, top=9):
    return torch.rand(count, 1, size, size), torch.arange(count).clamp(max=top)


SETTINGS = {
    'outputs': (dict(model=Flat(5)), '5 logits for 10 classes'),
    'test classes': (dict(test=images(top=12), classes=10), 'got'),  # refused when the images are opened
    'test size': (dict(test=images(size=9)), '(1, 9, 9)'),
    'micro-batches of one': (dict(grad_accum_steps=32), '--grad-accum-steps 32'),
    'batches of one': (dict(batch_size=1), '--batch-size 1'), 'almost of one': (dict(grad_accum_steps=31), None),
    'no optimizer': (dict(opt='sgdd'), 'sgdd'), 'second order': (dict(opt='adahessian'), '--opt adahessian'),
    'lookahead': (dict(opt='lookahead_adahessian'), 'adahessian'), 'awp': (dict(awp_gamma=0.01), None),
    'soft labels': (dict(smoothing=0.1), None), 'amp': (dict(amp=True), None),
    'trades': (dict(task='trades', attack_mode='train', eps_warmup_epochs=2), None),
    'autoattack': (dict(autoattack='standard', norm='l2', eps='0.5'), None),
}


@pytest.mark.parametrize('settings, expected', SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_and_data_that_do_not_fit(tmp_path, settings, expected):
    try:
        found = refusal(tmp_path, **settings)
    except ValueError as error:  # refused before the rehearsal
        found = str(error)
    assert found is None if expected is None else expected in found


@pytest.mark.filterwarnings('ignore')  # of packages that would make an optimizer faster
def test_every_optimizer_of_timm_trains_or_is_refused(tmp_path):
    """Those of packages that are not installed are refused by name as well."""
    fine = []
    for name in timm.optim.list_optimizers(exclude_filters=('bnb*', 'fused*')):
        try:
            trainer = prepared(tmp_path, '--opt', name, '--batch-size', '2', '--synthetic-fraction', '0')
            trainer.rehearse()
        except ValueError:
            continue
        fine.append(name)
        trainer.step(next(iter(trainer.data.epoch(0))), 0)
    assert {'sgd', 'adamw', 'lion', 'adafactor'} <= set(fine) and 'adahessian' not in fine


SIZES = {8: True, 12: False, 13: True, 14: False, 18: False, 19: False, 24: False, 28: True, 32: True}


@pytest.mark.parametrize('norm, eps', [('l2', '0.5'), ('l1', '5'), ('linf', '8/255')])
@pytest.mark.parametrize('size, fits', SIZES.items())
def test_square_by_size_of_the_images(size, fits, norm, eps):
    """Each part of AutoAttack is tried; the message names the part, and without it the others work."""
    model, data = Flat(pixels=size * size).eval(), digits_splits().test
    data = type(data)(torch.rand(4, 1, size, size), torch.arange(4), 10, 'noise')
    for attacks, works in (('standard', fits or norm == 'linf'), ('apgd-ce,apgd-t,fab-t', True)):
        config = ValidateConfig(norm=norm, eps=eps, autoattack=attacks)
        if works:
            rehearse_measurement(model, data, config, torch.device('cpu'))
        else:
            with pytest.raises(ValueError, match=r'^square.*--autoattack apgd-ce,apgd-t,fab-t'):
                rehearse_measurement(model, data, config, torch.device('cpu'))


def test_a_rehearsal_changes_no_result(tmp_path):
    """With BatchNorm, dropout, random starts and random numbers of numpy and Python."""
    results = []
    for rehearsed in (False, True):
        trainer = prepared(tmp_path, '--model-ema', '--autoattack', 'standard', model='tiny_norm')
        if rehearsed:
            trainer.rehearse()
        updated(trainer, 3)
        results.append({**trainer.model.state_dict(), 'random': torch.rand(3)})
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_the_command_refuses_and_writes_nothing(tmp_path, refused):
    refused(train(tmp_path, '--grad-accum-steps', '32', model='tiny_flat'), '--grad-accum-steps 32')


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'cp1252', 'utf-8'])
def test_output_in_any_encoding(tmp_path, monkeypatch, encoding):
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, 'stdout', output)
    assert train(tmp_path, '--epochs', '1', '--updates-per-epoch', '2') == 0
    output.flush()
    assert 'PGD-2' in output.buffer.getvalue().decode(encoding)
