"""The notice of an alpha that runs away."""
import pytest
import timm
import torch
from tiny_run import prepared, stop_at, train

import timm_paf
from timm_paf.engine import Trainer
from timm_paf.engine.alpha import AlphaWatch

RUNAWAY = ['--alpha-grad-clip', 'none', '--paf-lr-scale', '1e5', '--beta-penalty', '0', '--sched', 'none']


def net(act='pssilu', **settings):
    return timm.create_model(f'wrn10_2_{act}', in_chans=1, **settings)


def notice(values, model=None, clip=None):
    """The message of a run in which the first alpha takes these values, one per update."""
    model = net() if model is None else model
    alpha = next(iter(timm_paf.paf_parameters(model, 'alpha').values()))
    watch = AlphaWatch(model)
    for update, value in enumerate(values):
        with torch.no_grad():
            alpha.flatten()[-1].fill_(value)
        watch.record(update)
    return watch.message(clip)


@pytest.mark.parametrize('values, expected', [
    ([1.01, 1.5, 2.9, 1.6], None), ([0.6, 0.4, 0.21, 0.11], None), ([-0.1], (1, -0.1, 1)), ([1.5, 3.], (1.5, 3, 2)),
    ([0.7, 0.35, -1.], (0.7, 0.35, 2)), ([1.1, 0.], (1.1, 0, 2)), ([float('nan'), 1.], None), ([1e9], (1, 1e9, 1)),
], ids=['slow', 'slowly down', 'sign', 'double', 'half, the first', 'to 0', 'NaN is reported elsewhere', 'far'])
def test_what_is_reported(values, expected):
    text = notice(values)
    if expected is None:
        assert text == ''
    else:
        before, after, update = expected
        assert f'from {before:.3g} to {after:.3g} in update {update} ' in text


def test_one_of_many_alphas_is_named():
    model = net(act_sharing='channel')
    first, parameter = next(iter(timm_paf.paf_parameters(model, 'alpha').items()))
    assert notice([5.], model).startswith(f'{first}[{parameter.numel() - 1}] went from 1 to 5 ')


@pytest.mark.parametrize('act', ['relu', 'reblu', 'prelu0', 'ssilu'])
def test_networks_without_an_alpha_that_has_a_sign_to_keep(act):
    model = net(act)
    watch = AlphaWatch(model)
    for parameter in timm_paf.paf_parameters(model).values():
        parameter.data.fill_(-3.)
    watch.start()
    watch.record(0)
    assert watch.message(None) == ''


@pytest.mark.parametrize('clip, advice', [(None, '--alpha-grad-clip 0.002'), (0.05, 'below 0.05')], ids=str)
def test_advice(clip, advice):
    assert advice in notice([-1.], clip=clip)


def test_recording_reads_nothing_from_the_device():
    """Tensors without data stand for a GPU whose results are not there yet."""
    watch = AlphaWatch(net().to('meta'))
    for update in range(3):
        watch.record(update)


def test_a_run_says_it_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, 'evaluate', lambda self: None)
    assert train(tmp_path, *RUNAWAY, name='bad') in (0, 1)
    out = capsys.readouterr().out
    assert out.count('act.alpha went from') == 1 and '--alpha-grad-clip 0.002' in out
    assert train(tmp_path, name='good') == 0
    assert 'went from' not in capsys.readouterr().out


def test_a_resumed_run_is_compared_with_its_own_alpha(tmp_path, capsys, monkeypatch):
    """The checkpoint has another alpha than the new network."""
    monkeypatch.setattr(Trainer, 'evaluate', lambda self: None)
    fast = ['--alpha-grad-clip', '1', '--paf-lr-scale', '20', '--beta-penalty', '0', '--sched', 'none']

    def drift(self, *arguments, original=Trainer.record):
        """Alpha grows by a third in each update."""
        with torch.no_grad():
            timm_paf.paf_parameters(self.model)['act.alpha'].mul_(4 / 3)
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, 'record', drift)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 5)
        assert train(tmp_path, *fast, '--lr', '0') == 3
    assert train(tmp_path, *fast, '--lr', '0', '--resume', 'auto') == 0
    assert 'went from' not in capsys.readouterr().out
    checkpoint = torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=True)
    assert float(checkpoint['state_dict']['act.alpha']) == pytest.approx((4 / 3) ** 12)


def test_a_step_of_ones_own_is_watched(tmp_path):
    trainer = prepared(tmp_path, *RUNAWAY)
    for batch in trainer.batches():
        with torch.no_grad():
            timm_paf.paf_parameters(trainer.model)['act.alpha'].neg_()
        trainer.record(batch, torch.tensor(1.), torch.tensor(1))
        break
    assert 'in update 1 ' in trainer.alphas.message(None)
