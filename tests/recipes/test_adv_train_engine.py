"""Every option of the training engine does what it says; each test fails if the option did nothing."""
import dataclasses
import json
import math
from types import SimpleNamespace

import adv_train
import pytest
import torch
import yaml
from tiny_run import FAST, rows_of, weights_of
from torch import nn

from timm_paf.engine.cli import run
from timm_paf.engine.optim import OneCycle, WeightAverage
from timm_paf.engine.step import batches_from
from timm_paf.engine.validation import count, selection


def train(folder, *argv, name='run', model='tiny_smooth'):
    arguments = [*FAST, '--model', model, '--output', str(folder), '--experiment', name, *argv]
    return run(lambda: adv_train.prepare(arguments), adv_train.train)


def prepared(folder, *argv, model='tiny_smooth'):
    return adv_train.prepare([*FAST, '--model', model, '--output', str(folder), *argv])


def trained(folder, *argv, key='state_dict', model='tiny_smooth'):
    """Flat weights after a run."""
    name = f'run{len(list(folder.iterdir()))}'
    assert train(folder, *argv, name=name, model=model) == 0
    return torch.cat([value.flatten() for value in weights_of(folder / name / 'last.pth.tar', key).values()])


def test_average_without_decay_is_the_weights(tmp_path):
    flags = ['--model-ema', '--model-ema-decay']
    for model in ('tiny_smooth', 'tiny_norm'):
        raw = trained(tmp_path, *flags, '0', model=model)
        assert torch.equal(raw, trained(tmp_path, *flags, '0', key='state_dict_ema', model=model))
    assert not torch.equal(raw, trained(tmp_path, *flags, '0.5', key='state_dict_ema', model='tiny_norm'))


def test_average_follows_its_rule_and_copies_buffers(tmp_path):
    """Against the rule written out: copies first, then min(tau, (1 + n) / (10 + n))."""
    flags = ['--model-ema', '--model-ema-decay', '0.3', '--model-ema-warmup', '--model-ema-copy', '0.25']
    job = prepared(tmp_path, *flags, model='tiny_norm')
    expected = dict(job.task.trainable_module.state_dict())
    for update, batch in enumerate(batches_from(job.batches, 0, 8)):
        job.updates(batch, update)
        n = update - 3  # a quarter of twelve updates
        decay = 0. if n < 0 else min(0.3, (1 + n) / (10 + n))
        for name, value in job.task.trainable_module.state_dict().items():
            if isinstance(job.task.trainable_module.get_submodule(name.rpartition('.')[0]), nn.BatchNorm2d) and (
                    'running' in name or 'num' in name):
                expected[name] = value.clone()
            else:
                expected[name] = decay * expected[name] + (1 - decay) * value
    average = job.task.trainable_module_ema.module.state_dict()
    assert average.keys() == expected.keys()
    for name, value in average.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
    assert torch.equal(average['norm.running_mean'], job.task.trainable_module.norm.running_mean)


@pytest.mark.parametrize('n, expected', [(0, 0.1), (1, 2 / 11), (80, 0.9), (2000, 0.995)])
def test_decay_of_the_average(n, expected):
    class Task:
        def setup_ema(self, **kwargs):
            return None

    assert WeightAverage(Task(), decay=0.995, warmup=True, copied=7).decay_at(7 + n) == pytest.approx(expected)
    assert WeightAverage(Task(), decay=0.995, warmup=True, copied=7).decay_at(6) == 0


@pytest.mark.parametrize('attack', [['--task', 'plain'], []], ids=['plain', 'pgd-at'])
def test_accumulated_pieces_are_one_batch(tmp_path, attack):
    """Up to the order of floating-point sums; 3 pieces of 32 images are not of one size."""
    whole = trained(tmp_path, *attack)
    for pieces in ('2', '3'):
        torch.testing.assert_close(
            trained(tmp_path, *attack, '--grad-accum-steps', pieces), whole, rtol=1e-4, atol=1e-6)


def test_accumulation_runs_the_model_on_pieces(tmp_path):
    job, sizes = prepared(tmp_path, '--grad-accum-steps', '3', '--task', 'plain'), []
    job.task.trainable_module.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    job.updates(next(iter(job.batches.epoch(0))), 0)
    assert sizes == [11, 11, 10]


def gradient_after(folder, *argv):
    """The gradient that the optimizer is given in the first update."""
    unclipped = ['--beta-penalty', '0', '--beta-grad-clip', 'none']
    job, found = prepared(folder, '--task', 'plain', *unclipped, *argv), []
    job.optimizer.register_step_pre_hook(lambda *_: found.extend(
        p.grad.clone() for p in job.task.trainable_module.parameters()))
    job.updates(next(iter(job.batches.epoch(0))), 0)
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
    job, seen = prepared(tmp_path, '--amp', '--amp-dtype', str(dtype)[6:]), []
    job.task.trainable_module.fc.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    job.updates(next(iter(job.batches.epoch(0))), 0)
    assert seen == [dtype] * 3  # two steps of the attack, and the loss
    adv_train.validate(job, lambda: False)
    assert set(seen) == {dtype}
    assert trained(tmp_path, '--amp', '--amp-dtype', str(dtype)[6:]).isfinite().all()


def test_attack_in_float16_does_not_underflow(tmp_path):
    """A model that is sure of everything: without scaling the gradients to the images vanish."""
    steps = {}
    for flags in (['--amp', '--amp-dtype', 'float16'], []):
        job = prepared(tmp_path, *flags, '--no-attack-random-start')
        batch = next(iter(job.batches.epoch(0)))
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        with torch.no_grad():
            model[1].weight *= 1e-3
            model[1].bias.zero_()
            model[1].bias[0] = 8.
        with job.updates.precision():
            adversarial = job.task.attack(model, batch.x, torch.zeros(len(batch), dtype=torch.int64))
        steps[bool(flags)] = (adversarial - batch.x).sign()
    assert (steps[True] == steps[False]).double().mean() > 0.99


def test_channels_last_reaches_images_and_weights(tmp_path):
    job, seen = prepared(tmp_path, '--channels-last', '--task', 'plain', '--in-chans', '1', model='resnet18_relu'), []
    model = job.task.trainable_module
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    model.layer1.register_forward_hook(lambda module, args, output: seen.append(
        output.is_contiguous(memory_format=torch.channels_last) and not output.is_contiguous()))
    job.updates(next(iter(job.batches.epoch(0))), 0)
    assert seen == [True]


def test_compiled_model_trains_alike_and_saves_plain_names(tmp_path):
    plain = trained(tmp_path, '--model-ema')
    job = prepared(tmp_path, '--torchcompile', 'eager')
    assert hasattr(job.task.trainable_module, '_orig_mod')
    torch.testing.assert_close(trained(tmp_path, '--model-ema', '--torchcompile', 'eager'), plain)
    folder = sorted(tmp_path.glob('run*'))[-1]
    assert 'fc.weight' in weights_of(folder / 'last.pth.tar') and 'fc.weight' in weights_of(
        folder / 'last.pth.tar', 'state_dict_ema')


def test_checkpointed_gradients_recompute(tmp_path):
    counts = {}
    for flags in ([], ['--grad-checkpointing']):
        job, calls = prepared(tmp_path, *flags, '--task', 'plain', model='wrn10_2_relu'), []
        job.task.trainable_module.layer1[0].conv1.register_forward_hook(lambda *_, calls=calls: calls.append(0))
        job.updates(next(iter(job.batches.epoch(0))), 0)
        counts[bool(flags)] = len(calls)
    assert counts == {False: 1, True: 2}


def rates(folder, *argv, updates=12):
    """Rate and momentum before each update."""
    job, found = prepared(folder, '--task', 'plain', '--lr', '0.1', *argv), []
    for update, batch in enumerate(batches_from(job.batches, 0, updates)):
        found.append((job.optimizer.param_groups[0]['lr'], job.optimizer.param_groups[0].get('momentum')))
        job.updates(batch, update)
        if (update + 1) % job.updates_per_epoch == 0:
            job.scheduler.step((update + 1) // job.updates_per_epoch)
    return found


def cosine(start, end, share):
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def test_onecycle_is_that_of_its_formula(tmp_path):
    found = rates(tmp_path, '--sched', 'onecycle', '--onecycle-pct-start', '0.25')
    for update, (lr, momentum) in enumerate(found):
        peak = 0.25 * 12 - 1
        if update <= peak:
            expected = cosine(0.1 / 25, 0.1, update / peak), cosine(0.95, 0.85, update / peak)
        else:
            share = (update - peak) / (11 - peak)
            expected = cosine(0.1, 0.1 / 25 / 1e4, share), cosine(0.85, 0.95, share)
        assert (lr, momentum) == pytest.approx(expected, rel=1e-6)


def test_onecycle_by_epochs_and_without_momentum(tmp_path):
    flags = ['--sched', 'onecycle', '--no-sched-on-updates', '--epochs', '4', '--updates-per-epoch', '3',
             '--onecycle-momentum', '--onecycle-pct-start', '0.5']
    found = rates(tmp_path, *flags)
    assert [found[i][0] for i in range(12)] == [found[i - i % 3][0] for i in range(12)]
    assert found[3][0] == pytest.approx(0.1) and {momentum for _, momentum in found} == {0.9}


@pytest.mark.parametrize('flags, expected', [
    (['--sched', 'multistep', '--decay-milestones', '1'], [0.1] * 5 + [0.01] * 7),
    (['--sched', 'multistep', '--decay-milestones', '1', '--decay-rate', '0.5', '--no-sched-on-updates'],
     [0.1] * 6 + [0.05] * 6),
    (['--sched', 'step', '--warmup-epochs', '1', '--warmup-lr', '0.04'],
     [0.04 + 0.01 * i for i in range(6)] + [0.1] * 6),
    (['--sched', 'cosine', '--min-lr', '0', '--epochs', '1', '--cooldown-epochs', '1'],
     [cosine(0.1, 0, i / 6) for i in range(6)] + [0.] * 6),
], ids=['multistep', 'by epochs', 'warm-up', 'cool-down'])
def test_timms_schedules(tmp_path, flags, expected):
    """Timm's multistep decays one step before the milestone, as the schedule of Rice et al. does at update scale."""
    assert [lr for lr, _ in rates(tmp_path, *flags)] == pytest.approx(expected)


def test_cool_down_comes_after_the_other_epochs(tmp_path):
    jobs = [prepared(tmp_path, '--epochs', '3', '--cooldown-epochs', count) for count in ('0', '2')]
    assert [job.epochs for job in jobs] == [3, 5]


def test_onecycle_can_be_entered_anywhere():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4, momentum=0.9)
    cycle = OneCycle(
        optimizer, total=50, on_updates=True, pct_start=0.1, div_factor=25, final_div_factor=1e4,
        momentum=(0.85, 0.95))
    along = []
    for update in range(51):
        cycle.step_update(update)
        along.append((optimizer.param_groups[0]['lr'], optimizer.param_groups[0]['momentum']))
    for update in (30, 3, 50, 0):
        cycle.step_update(update)
        assert (optimizer.param_groups[0]['lr'], optimizer.param_groups[0]['momentum']) == along[update]


def test_optimizer_options(tmp_path):
    flags = ['--opt', 'adamw', '--opt-eps', '1e-3', '--opt-betas', '0.8', '0.9', '--weight-decay', '0.1']
    (group,) = prepared(tmp_path, *flags).optimizer.param_groups
    assert (group['eps'], group['betas'], group['weight_decay']) == (1e-3, (0.8, 0.9), 0.1)


def test_layer_decay(tmp_path):
    job = prepared(tmp_path, '--layer-decay', '0.5', model='wrn10_2_relu')
    assert len({group['lr_scale'] for group in job.optimizer.param_groups}) > 2


def test_fixed_activation_stays(tmp_path):
    assert train(tmp_path, '--act-fixed', 'alpha=2.0') == 0
    found = weights_of(tmp_path / 'run' / 'last.pth.tar')
    assert found['act.alpha'].item() == 2. and found['act.beta'].item() != pytest.approx(1e-8, rel=1e-3)


def test_epochs_of_a_set_length_go_through_the_data_without_a_gap(tmp_path):
    job = prepared(tmp_path, '--updates-per-epoch', '50', '--batch-size', '64')
    assert len(job.batches) == 40
    stream = [batch.x for batch in batches_from(job.batches, 38, 5)]
    direct = [*(b.x for b in job.batches.epoch(0, 38)), *(b.x for b in job.batches.epoch(1))][:5]
    assert all(torch.equal(one, other) for one, other in zip(stream, direct, strict=True))


def test_validation_now_and_then_and_at_the_end(tmp_path):
    assert train(tmp_path, '--epochs', '5', '--val-interval', '2', '--val-attack-steps', '1') == 0
    rows = rows_of(tmp_path / 'run')
    assert [bool(row['eval_robust']) for row in rows] == [False, True, False, True, True]


def test_validation_attack_is_its_own(tmp_path):
    job = prepared(tmp_path, '--val-attack-steps', '7')
    assert (job.config.validation_attack(0).steps, job.task.attack.steps) == (7, 2)
    step = prepared(tmp_path, '--val-attack-step-size', '1/100').config.validation_attack(0).step_size
    assert step == pytest.approx(0.01)


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
    """A run whose network knows the digits a little; its validation attack is weak, so that the start decides a lot."""
    job = prepared(
        tmp_path_factory.mktemp('learned'), '--task', 'plain', '--updates-per-epoch', '100', '--lr', '0.1', '--eps',
        '0.2', '--val-attack-steps', '1', '--val-attack-step-size', '0.05')
    for update, batch in enumerate(batches_from(job.batches, 0, 100)):
        job.updates(batch, update)
    return job


def counts(job, *, ranks=1, **settings):
    """What validation counts, each rank's share in turn."""
    config = dataclasses.replace(job.config, **settings)
    return sum(
        count(dataclasses.replace(
            job, config=config, processes=dataclasses.replace(job.processes, rank=rank, world_size=ranks)),
            job.task.get_trainable_module(), lambda: False)
        for rank in range(ranks)).tolist()


@pytest.mark.parametrize('ranks, size', [(1, 1), (1, 7), (1, 64), (2, 7), (3, 64), (200, 5)])
def test_validation_counts_do_not_depend_on_processes_and_batches(learned, ranks, size):
    """Of 200 processes some have no image."""
    whole = counts(learned, eval_batch_size=180)
    assert counts(learned, ranks=ranks, eval_batch_size=size) == whole
    assert len({tuple(counts(learned, seed=seed)) for seed in range(8)}) > 1


def test_best_of_raw_and_averaged_weights_and_the_gap(tmp_path):
    flags = ['--model-ema', '--model-ema-decay', '0.6', '--epochs', '5', '--lr', '0.3', '--sched', 'none',
             '--updates-per-epoch', '20']
    assert train(tmp_path, *flags) == 0
    folder, rows = tmp_path / 'run', rows_of(tmp_path / 'run')
    found = json.loads((folder / 'selection.json').read_text())
    assert found['selected'] == 'ema'
    for weights, column, name in (('ema', 'eval_robust', 'model_best'), ('raw', 'eval_robust_raw', 'model_best_raw')):
        values = [float(row[column]) for row in rows]
        best = values.index(max(values))
        assert found[weights]['best'] == {'epoch': best, 'robust': max(values)}
        assert found[weights]['gap'] == pytest.approx(max(values) - values[-1])
        assert torch.load(folder / f'{name}.pth.tar', weights_only=True)['epoch'] == best
    assert 'state_dict_ema' not in torch.load(folder / 'model_best_raw.pth.tar', weights_only=True)


def test_gap_between_best_and_last():
    rows = [{'epoch': e, 'eval_robust': v} for e, v in enumerate([10., 50., 50., None, 42.])]
    job = SimpleNamespace(
        progress=SimpleNamespace(rows=rows), config=SimpleNamespace(model_ema=False, eval_metric='robust'))
    assert selection(job) == {'metric': 'robust', 'selected': 'raw', 'raw': {
        'best': {'epoch': 1, 'robust': 50.}, 'last': {'epoch': 4, 'robust': 42.}, 'gap': 8.}}


def test_best_checkpoints_are_kept_by_number(tmp_path):
    assert train(tmp_path, '--epochs', '6', '--checkpoint-hist', '2') == 0
    rows = sorted(rows_of(tmp_path / 'run'), key=lambda row: (-float(row['eval_robust']), int(row['epoch'])))
    kept = {path.name for path in (tmp_path / 'run').glob('checkpoint-*')}
    assert {f'checkpoint-{row["epoch"]}.pth.tar' for row in rows[:2]} <= kept and len(kept) <= 4


def test_dry_run_shows_and_writes_nothing(tmp_path, capsys):
    assert train(tmp_path, '--dry-run', '--num-synthetic', '500') == 0
    lines = capsys.readouterr().out.splitlines()
    settings = yaml.safe_load('\n'.join(lines[:lines.index('')]))
    assert (settings['model'], settings['lr'], settings['num_synthetic']) == ('tiny_smooth', 0.05, 500)
    text = '\n'.join(lines)
    for part in ('1,900 trained parameters, 2 parameters of activations', 'act.alpha: 1', '12 updates of 32 images',
                 'a pass over the real images has 79 updates', 'about ', 'memory: ', ' GiB'):
        assert part in text
    assert list(tmp_path.iterdir()) == []


BAD = {
    'pieces': (['--grad-accum-steps', '0'], '--grad-accum-steps = 0: expected 1 or more'),
    'clip': (['--clip-grad', '0'], '--clip-grad = 0.0: expected a number above 0'),
    'clip mode': (['--clip-mode', 'agg'], 'expected one of norm, value, agc'),
    'plateau': (['--sched', 'plateau'], '--sched plateau follows the validation'),
    'momentum': (['--onecycle-momentum', '0.9'], 'expected two numbers or none'),
    'onecycle for adafactor': (['--sched', 'onecycle', '--opt', 'adafactor'], 'momentum'),
    'fixed': (['--act-fixed', 'gamma=1'], "--act-fixed gamma=1: act is a PSSiLU, which has no 'gamma'"),
    'fixed text': (['--act-fixed', 'alpha'], "--act-fixed = 'alpha': expected NAME=VALUE"),
    'fixed value': (['--act-fixed', 'alpha=two'], '--act-fixed alpha=two: could not convert'),
    'model argument': (['--model', 'wrn10_2_relu', '--model-kwargs', 'colour=3'], 'wrn10_2_relu does not take them'),
    'checkpointing': (['--grad-checkpointing'], '--grad-checkpointing: tiny_smooth has none'),
    'sync_bn': (['--sync-bn'], '--sync-bn is for several processes on GPUs'),
    'backend': (['--torchcompile', 'inductr'], 'inductr'),
    'ema share': (['--model-ema-copy', '1.5'], '--model-ema-copy = 1.5: expected a number from 0 to 1'),
    'milestone': (['--decay-milestones', '0', '5'], 'expected epochs from 1 on'),
    'interval': (['--val-interval', '0'], '--val-interval = 0'),
    'minutes': (['--checkpoint-minutes', '-1'], '--checkpoint-minutes = -1.0'),
}


@pytest.mark.parametrize('argv, message', BAD.values(), ids=BAD.keys())
def test_bad_settings_are_one_line_and_write_nothing(tmp_path, refused, argv, message):
    refused(train(tmp_path, *argv), message)
