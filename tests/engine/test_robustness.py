"""Flags of the measurement: they reach `evaluate_robustness`, whose own tests say what it does."""
import pytest
import timm
import torch
from tiny_run import FAST, open_measurement, open_trainer

import timm_paf
from timm_paf.activations import PSSiLU
from timm_paf.attacks import CompileSettings, ThreatModel
from timm_paf.engine import validate as validate_command
from timm_paf.tasks import AdversarialTrainingTask

MEASURED = {
    'pgd-steps': (['--pgd-steps', '7'], 'pgd_steps', 7),
    'autoattack': (['--autoattack', 'rand'], 'autoattack_version', 'rand'),
    'n-examples': (['--n-examples', '11'], 'n_examples', 11), 'n-pgd': (['--n-pgd', '9'], 'n_pgd', 9),
    'eval-batch-size': (['--eval-batch-size', '77'], 'batch_size', 77),
    'seed': (['--seed', '3'], 'seed', 3), 'capture': (['--capture', 'none'], 'capture', 'none'),
    'eps and norm': (['--eps', '0.05', '--norm', 'l2'], 'threat', ThreatModel(eps='0.05', norm='l2')),
    'torchcompile': (
        ['--torchcompile', 'aot_eager', '--torchcompile-mode', 'default'], 'compile',
        CompileSettings(backend='aot_eager', mode='default')),
}


def told(monkeypatch):
    """What `evaluate_robustness` is called with; it measures nothing."""
    kept = {}

    def evaluate(model, images, labels, **settings):
        kept.update(settings)
        raise ValueError('enough.')

    monkeypatch.setattr('timm_paf.engine.measurement.evaluate_robustness', evaluate)
    return kept


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Raw and averaged weights that differ, of a network with an activation for each layer; it does not say so."""
    path = tmp_path_factory.mktemp('weights') / 'last.pth.tar'
    model = timm.create_model('wrn10_2_psilu', in_chans=1, act_sharing='layer')
    raw = model.state_dict()
    torch.save({
        'state_dict': raw, 'state_dict_ema': {name: value + 1 for name, value in raw.items()},
        'args': {'model': 'wrn10_2_psilu', 'dataset': 'digits', 'eps': '0.1', 'act_sharing': 'layer'}}, path)
    return path


def prepared(checkpoint, *argv):
    return open_measurement(['--checkpoint', str(checkpoint), '--device', 'cpu', *argv])


@pytest.mark.parametrize('flags, name, expected', [
    *(pytest.param(*case, id=name) for name, case in MEASURED.items()),
    pytest.param(['--attack', 'pgd'], 'autoattack_version', None, id='attack'),
    pytest.param(['--autoattack', 'apgd-ce, square'], 'attacks', ['apgd-ce', 'square'], id='parts'),
    pytest.param(['--save-adv', 'adv.npz'], 'save_adv', 'adv.npz', id='save-adv'),
])
def test_validation_measures_as_told(checkpoint, tmp_path, monkeypatch, flags, name, expected):
    monkeypatch.chdir(tmp_path)
    kept = told(monkeypatch)
    assert validate_command(['--checkpoint', str(checkpoint), '--device', 'cpu', *flags]) == 1
    assert kept[name] == expected


def test_compilation_of_training_is_as_told(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(AdversarialTrainingTask, 'compile', lambda self, **settings: kept.append(settings))
    trainer = open_trainer([
        *FAST, '--model', 'tiny_smooth', '--output', str(tmp_path), '--torchcompile', 'inductor', '--torchcompile-mode',
        'reduce-overhead'])
    assert kept == [{'backend': 'inductor', 'mode': 'reduce-overhead', 'dynamic': False}]
    settings = trainer.task.attack.compile
    assert (settings.backend, settings.mode) == ('inductor', 'reduce-overhead')


@pytest.mark.parametrize('flags, added, name', [
    ([], 1, 'state_dict_ema'), (['--use-ema'], 1, 'state_dict_ema'), (['--no-use-ema'], 0, 'state_dict')],
    ids=['unset', 'averaged', 'raw'])
def test_averaged_or_raw_weights(checkpoint, flags, added, name):
    trainer = prepared(checkpoint, *flags)
    raw = torch.load(checkpoint, weights_only=True)['state_dict']['fc.weight']
    assert torch.equal(trainer.model.fc.weight, raw + added) and trainer.weights == name


def test_averaged_weights_are_not_made_up(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content['state_dict_ema']
    torch.save(content, tmp_path / 'raw.pth')
    assert prepared(tmp_path / 'raw.pth').weights == 'state_dict'
    with pytest.raises(ValueError, match='state_dict_ema'):
        prepared(tmp_path / 'raw.pth', '--use-ema')


def test_arguments_of_the_model(checkpoint, monkeypatch):
    monkeypatch.setattr(
        'timm_paf.engine.measurement.load_network', lambda model, *_, **__: (model, 'nothing', '', '', False))
    assert prepared(checkpoint).model.drop_rate == 0
    model = prepared(checkpoint, '--model', 'wrn10_2_pssilu', '--model-kwargs', 'drop_rate=0.3').model
    assert model.drop_rate == 0.3 and isinstance(model.layer1[0].act1, PSSiLU)
    counts = [len(timm_paf.paf_parameters(prepared(checkpoint, *flags).model))
              for flags in ([], ['--act-sharing', 'network'])]
    assert counts[0] > counts[1] == 1
