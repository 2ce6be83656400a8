"""One update: what each setting changes about it."""
import pytest
import torch
import yaml
from tiny_run import prepared, train, trained, weights_of
from torch import nn

from timm_paf.engine.step import batches_from, micro_batch_sizes


@pytest.mark.parametrize('attack', [['--task', 'plain'], []], ids=['plain', 'pgd-at'])
def test_accumulated_pieces_are_one_batch(tmp_path, attack):
    """Up to the order of floating-point sums; 3 pieces of 32 images are not of one size."""
    whole = trained(tmp_path, *attack)
    for pieces in ('2', '3'):
        torch.testing.assert_close(
            trained(tmp_path, *attack, '--grad-accum-steps', pieces), whole, rtol=1e-4, atol=1e-6)


def test_accumulation_runs_the_model_on_pieces(tmp_path):
    trainer, sizes = prepared(tmp_path, '--grad-accum-steps', '3', '--task', 'plain'), []
    trainer.task.trainable_module.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    trainer.step(next(iter(trainer.data.epoch(0))), 0)
    assert sizes == [11, 11, 10]


@pytest.mark.parametrize('count, steps, whole, sizes', [
    (32, 1, 32, [32]), (32, 3, 32, [11, 11, 10]), (10, 3, 32, [4, 4, 2]), (5, 4, 32, [3, 2]), (7, 3, 7, [3, 2, 2]),
    (13, 4, 32, [4, 3, 3, 3]), (3, 2, 32, [3]), (4, 4, 4, [1] * 4), (3, 8, 32, [3]),
    (4, 8, 32, [2, 2]), (1, 4, 32, [1])], ids=str)
def test_sizes_of_micro_batches(count, steps, whole, sizes):
    """None of one image, unless the settings ask for as many parts as images."""
    assert micro_batch_sizes(count, steps, whole) == sizes


def gradient_after(folder, *argv):
    """The gradient that the optimizer is given in the first update."""
    unclipped = ['--beta-penalty', '0', '--beta-grad-clip', 'none', '--alpha-grad-clip', 'none']
    trainer, found = prepared(folder, '--task', 'plain', *unclipped, *argv), []
    trainer.optimizer.register_step_pre_hook(lambda *_: found.extend(
        p.grad.clone() for p in trainer.task.trainable_module.parameters()))
    trainer.step(next(iter(trainer.data.epoch(0))), 0)
    return found


def test_clipping(tmp_path):
    plain = gradient_after(tmp_path)
    norm = torch.cat([g.flatten() for g in plain]).norm()
    assert norm > 0.1
    by_norm = gradient_after(tmp_path, '--clip-grad', '0.1')
    for one, other in zip(by_norm, plain, strict=True):
        torch.testing.assert_close(one, other * 0.1 / (norm + 1e-6))
    by_value = gradient_after(tmp_path, '--clip-grad', '0.01', '--clip-mode', 'value')
    for one, other in zip(by_value, plain, strict=True):
        assert torch.equal(one, other.clamp(-0.01, 0.01))
    by_agc = gradient_after(tmp_path, '--clip-grad', '0.01', '--clip-mode', 'agc')
    assert not torch.equal(by_agc[2], plain[2]) and torch.equal(by_agc[-1], plain[-1])


def test_the_penalty_of_beta_leaves_the_other_gradients_their_size(tmp_path):
    found = {}
    for penalty in ('0', '10'):
        flags = ['--beta-penalty', penalty, '--beta-grad-clip', '0.01', '--clip-grad', '0.1']
        found[penalty] = gradient_after(tmp_path, *flags)
    names = [name for name, _ in prepared(tmp_path).task.trainable_module.named_parameters()]
    for name, one, other in zip(names, found['0'], found['10'], strict=True):
        if not name.endswith('beta'):
            torch.testing.assert_close(one, other)
    assert abs(found['10'][names.index('act.beta')]) == pytest.approx(0.01, rel=1e-3)


def test_clipped_float16_gradients_are_unscaled_first(tmp_path):
    flags = ['--amp', '--amp-dtype', 'float16', '--clip-grad', '0.1']
    gradients = torch.cat([g.flatten() for g in gradient_after(tmp_path, *flags)])
    assert gradients.norm() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision_reaches_attack_loss_and_validation(tmp_path, dtype):
    trainer, seen = prepared(tmp_path, '--amp', '--amp-dtype', str(dtype)[6:]), []
    trainer.task.trainable_module.fc.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    trainer.step(next(iter(trainer.data.epoch(0))), 0)
    assert seen == [dtype] * 3  # two steps of the attack, and the loss
    trainer.validate()
    assert set(seen) == {dtype}
    assert trained(tmp_path, '--amp', '--amp-dtype', str(dtype)[6:]).isfinite().all()


def test_attack_in_float16_does_not_underflow(tmp_path):
    """A model that is sure of everything: without scaling the gradients to the images vanish."""
    steps = {}
    for flags in (['--amp', '--amp-dtype', 'float16'], []):
        trainer = prepared(tmp_path, *flags, '--no-attack-random-start')
        batch = next(iter(trainer.data.epoch(0)))
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        with torch.no_grad():
            model[1].weight *= 1e-3
            model[1].bias.zero_()
            model[1].bias[0] = 8.
        with trainer.step.precision():
            adversarial = trainer.task.attack(model, batch.x, torch.zeros(len(batch), dtype=torch.int64))
        steps[bool(flags)] = (adversarial - batch.x).sign()
    assert (steps[True] == steps[False]).double().mean() > 0.99


def test_channels_last_reaches_images_and_weights(tmp_path):
    trainer, seen = prepared(tmp_path, '--channels-last', '--task', 'plain', model='resnet18_relu'), []
    model = trainer.task.trainable_module
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    model.layer1.register_forward_hook(lambda module, args, output: seen.append(
        output.is_contiguous(memory_format=torch.channels_last) and not output.is_contiguous()))
    trainer.step(next(iter(trainer.data.epoch(0))), 0)
    assert seen == [True]


def test_checkpointed_gradients_recompute(tmp_path):
    counts = {}
    for flags in ([], ['--grad-checkpointing']):
        trainer, calls = prepared(tmp_path, *flags, '--task', 'plain', model='wrn10_2_relu'), []
        trainer.task.trainable_module.layer1[0].conv1.register_forward_hook(lambda *_, calls=calls: calls.append(0))
        trainer.step(next(iter(trainer.data.epoch(0))), 0)
        counts[bool(flags)] = len(calls)
    assert counts == {False: 1, True: 2}


def test_fixed_activation_stays(tmp_path):
    assert train(tmp_path, '--act-fixed', 'alpha=2.0') == 0
    found = weights_of(tmp_path / 'run' / 'last.pth.tar')
    assert found['act.alpha'].item() == 2. and found['act.beta'].item() != pytest.approx(1e-8, rel=1e-3)


def test_epochs_of_a_set_length_go_through_the_data_without_a_gap(tmp_path):
    trainer = prepared(tmp_path, '--updates-per-epoch', '50', '--batch-size', '64')
    assert len(trainer.data) == 40
    stream = [batch.x for batch in batches_from(trainer.data, 38, 5)]
    direct = [*(b.x for b in trainer.data.epoch(0, 38)), *(b.x for b in trainer.data.epoch(1))][:5]
    assert all(torch.equal(one, other) for one, other in zip(stream, direct, strict=True))


def test_dry_run_shows_and_writes_nothing(tmp_path, capsys):
    assert train(tmp_path, '--dry-run', '--num-synthetic', '500') == 0
    lines = capsys.readouterr().out.splitlines()
    settings = yaml.safe_load('\n'.join(lines[:lines.index('')]))
    assert (settings['model'], settings['lr'], settings['num_synthetic']) == ('tiny_smooth', 0.05, 500)
    text = '\n'.join(lines)
    for number in ('1,900 trained parameters', '12 updates of 32 images', '79 updates', ' GiB'):
        assert number in text
    assert list(tmp_path.iterdir()) == []
