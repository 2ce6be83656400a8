"""How a run computes: --torchcompile changes nothing but the time, and the defaults of a device."""
import dataclasses
import json

import pytest
import torch
import yaml
from tiny_run import FAST, assert_same_result, open_trainer, rows_of, stop_at, train, weights_of
from torch._dynamo.utils import counters

from timm_paf.engine import TrainConfig, Trainer
from timm_paf.engine import validate as validate_command
from timm_paf.engine.execution import with_device_defaults

COMPILED = ['--torchcompile', 'aot_eager']


@pytest.mark.parametrize('device, native, flags, amp, channels_last', [
    ('cpu', True, {}, False, False), ('cuda', True, {}, True, True),
    ('cuda', True, {'amp': False, 'channels_last': False}, False, False), ('cuda', False, {}, False, True),
    ('cuda', False, {'amp_dtype': 'float16'}, True, True),
    ('cpu', True, {'amp': True, 'channels_last': True}, True, True),
], ids=['cpu', 'gpu', 'gpu, off', 'gpu without bfloat16', 'gpu, float16', 'cpu, on'])
def test_defaults_of_a_device(device, native, flags, amp, channels_last, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: native)
    config = with_device_defaults(TrainConfig(**flags), torch.device(device))
    assert (config.amp, config.channels_last) == (amp, channels_last)


def test_a_run_resumes_elsewhere_with_another_precision_only_if_asked(tmp_path, monkeypatch, capsys):
    """As a run that began on a GPU, where both settings are on without a flag."""
    with monkeypatch.context() as patch:
        patch.setattr('timm_paf.engine.components.with_device_defaults', lambda config, device: with_device_defaults(
            dataclasses.replace(config, amp=True, channels_last=True), device))
        stop_at(patch, 2)
        assert train(tmp_path) == 3
        assert 'bfloat16; memory format channels_last' in capsys.readouterr().out
    settings = yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())
    assert settings['amp'] is True and settings['channels_last'] is True
    assert train(tmp_path, '--resume', 'auto') == 2
    assert 'amp: True -> False; channels_last: True -> False' in capsys.readouterr().err
    assert train(tmp_path, '--resume', 'auto', '--capture', 'none', '--resume-changed') == 0
    assert 'amp: True -> False' in capsys.readouterr().out


def test_graphs_of_network_and_average_are_freed_at_the_end(tmp_path, monkeypatch):
    freed = []
    monkeypatch.setattr('timm_paf.engine.trainer.release_graphs', freed.append)
    trainer = open_trainer([*FAST, '--output', str(tmp_path), '--model', 'tiny_smooth', '--model-ema', '--epochs', '1'])
    with trainer.running():
        assert not freed
    for network in (trainer.model, trainer.task.get_trainable_module(ema=True).module):
        assert any(module is network for module in freed)


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_epoch(tmp_path, monkeypatch):
    """With all that changes in time or size: warm-up, perturbed weights, averages, partial batches in both splits."""
    original, counted, strict = Trainer.validate, [], torch._dynamo.config.patch(error_on_recompile=True)

    def validate(self):
        checked = original(self)
        counted.append(counters['stats']['unique_graphs'])
        if len(counted) == 1:
            strict.__enter__()
        return checked

    monkeypatch.setattr(Trainer, 'validate', validate)
    before = counters['stats']['unique_graphs']
    trainer = open_trainer([
        *FAST, '--output', str(tmp_path), '--model', 'tiny_norm', *COMPILED, '--task', 'trades', '--awp-gamma', '0.005',
        '--model-ema', '--eps-warmup-epochs', '2', '--epochs', '3', '--updates-per-epoch', '12', '--batch-size', '120',
        '--synthetic-fraction', '0', '--eval-batch-size', '150'])
    assert len(trainer.data) < 12 and len(trainer.val) == 180
    try:
        trainer.fit()
    finally:
        strict.__exit__(None, None, None)
    assert len(counted) == 3 and counted[0] == counted[2]
    # of the attack two passes, with and without gradients; of loss and perturbed weights one for whole and partial
    # batches; in validation two passes, which raw and averaged weights share
    assert counted[0] - before == 2 + 4 + 2


@pytest.mark.parametrize('flags', [
    [], *(pytest.param(flags, marks=pytest.mark.slow) for flags in (
        ['--task', 'mart'], ['--norm', 'l2', '--eps', '0.5', '--attack-step-rule', 'momentum'],
        ['--attack-mode', 'train', '--grad-accum-steps', '2']))], ids=str)
def test_training_is_the_same_up_to_rounding(tmp_path, flags):
    for name, more in (('plain', []), ('compiled', COMPILED)):
        assert train(tmp_path, *flags, *more, '--model-ema', '--updates-per-epoch', '3', name=name) == 0
    for key in ('state_dict', 'state_dict_ema'):
        one, other = (weights_of(tmp_path / name / 'last.pth.tar', key) for name in ('plain', 'compiled'))
        assert one.keys() == other.keys()
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
    plain, compiled = (json.loads((tmp_path / name / 'report.json').read_text()) for name in ('plain', 'compiled'))
    assert abs(plain['pgd']['correct'] - compiled['pgd']['correct']) <= 3


@pytest.mark.slow
def test_compiled_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """Also when it is interrupted at a partial batch, which must be filled up to what it is later."""
    flags = [*COMPILED, '--model-ema', '--updates-per-epoch', '12', '--epochs', '1', '--batch-size', '120',
             '--synthetic-fraction', '0']
    assert train(tmp_path, *flags, name='whole') == 0
    batches = open_trainer(
        [*FAST, *flags, '--model', 'tiny_smooth', '--output', str(tmp_path)]).data
    partial = len(batches) - 1
    assert 0 < partial < 12
    with monkeypatch.context() as patch:
        stop_at(patch, partial - 1)
        assert train(tmp_path, *flags, name='broken') == 3
    torch._dynamo.reset()
    assert train(tmp_path, *flags, '--resume', 'auto', name='broken') == 0
    assert_same_result(tmp_path / 'whole', tmp_path / 'broken')
    assert rows_of(tmp_path / 'whole')


@pytest.mark.slow
def test_validate_gives_the_verdicts_of_the_eager_run(tmp_path):
    assert train(tmp_path, '--updates-per-epoch', '30', '--epochs', '1', '--eps', '0.1') == 0
    found = []
    for name, more in (('plain', []), ('compiled', COMPILED)):
        flags = [
            '--checkpoint', str(tmp_path / 'run' / 'last.pth.tar'), '--pgd-steps', '3', '--autoattack', 'rand',
            '--n-examples', '30', '--eval-batch-size', '100', '--no-trust', '--device', 'cpu', '--output',
            str(tmp_path / name), *more]
        before = counters['stats']['unique_graphs']
        assert validate_command(flags) == 0
        assert (counters['stats']['unique_graphs'] == before) is (name == 'plain')
        report = json.loads((tmp_path / name / 'report.json').read_text())
        found.append([report[part]['correct'] for part in ('clean', 'pgd', 'autoattack')])
    assert found[0] == found[1] and found[0][0] > found[0][1] > 0
