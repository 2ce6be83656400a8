"""The recipes as a user runs them, small."""
import csv
import json
import math
import os

import numpy as np
import pytest
import timm
import torch
import yaml
from tiny_run import open_measurement, open_trainer

from timm_paf.data import DataChanged, MixedBatches
from timm_paf.engine import train as train_command
from timm_paf.engine import validate as validate_command
from timm_paf.engine.data import memory_budget
from timm_paf.tasks import AdversarialTrainingTask

FAST = ['--model', 'wrn10_2_pssilu', '--epochs', '2', '--attack-steps', '2', '--batch-size', '64', '--pgd-steps', '3',
        '--num-synthetic', '500', '--n-examples', '4', '--autoattack', 'none', '--device', 'cpu']


def train(tmp_path, *argv, experiment='run'):
    arguments = [*FAST, '--output', str(tmp_path), '--experiment', experiment, *argv]
    return train_command(arguments)


def rows_of(folder):
    return list(csv.DictReader((folder / 'summary.csv').read_text().splitlines()))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run with everything on, AutoAttack included."""
    folder = tmp_path_factory.mktemp('finished')
    os.environ.setdefault('TIMM_PAF_CACHE', str(folder / 'cache'))
    assert train(folder, '--autoattack', 'standard', '--model-ema', '--model-ema-decay', '0.9') == 0
    return folder / 'run'


def test_run_writes_what_it_promises(finished):
    names = {'args.yaml', 'summary.csv', 'last.pth.tar', 'model_best.pth.tar', 'report.json', 'report.html'}
    assert names <= {path.name for path in finished.iterdir()}
    settings = yaml.safe_load((finished / 'args.yaml').read_text())
    assert (settings['model'], settings['eps'], settings['epochs'], settings['device']) == (
        'wrn10_2_pssilu', '0.2', 2, 'cpu')
    rows = rows_of(finished)
    assert [row['epoch'] for row in rows] == ['0', '1']
    columns = {
        'train_loss', 'train_robust', 'train_data_wait', 'eval_clean', 'eval_robust', 'act_alpha', 'act_beta',
        'act_alpha_grad', 'act_finite_curvature', 'lr'}
    assert columns <= set(rows[0])
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    assert rows[0]['act_alpha'] != rows[1]['act_alpha']


def test_report_holds_integers(finished):
    report = json.loads((finished / 'report.json').read_text())
    for name, total in (('clean', 360), ('pgd', 360), ('autoattack', 4)):
        assert type(report[name]['correct']) is int and report[name]['total'] == total
    assert report['autoattack']['components'] == ['apgd-ce', 'apgd-t', 'fab-t', 'square']
    assert (report['pgd']['eps'], report['pgd']['steps']) == ('0.2', 3)


def test_checkpoints_are_timms_and_plain(finished):
    for name in ('last.pth.tar', 'model_best.pth.tar'):
        checkpoint = torch.load(finished / name, weights_only=True)
        assert {'state_dict', 'state_dict_ema', 'optimizer', 'epoch', 'metric', 'arch', 'args'} <= set(checkpoint)
        raw, average = (checkpoint[key]['fc.weight'] for key in ('state_dict', 'state_dict_ema'))
        assert not torch.equal(raw, average)
        model = timm.create_model(checkpoint['arch'], in_chans=1)
        timm.models.load_checkpoint(model, str(finished / name), use_ema=True, weights_only=True)
        assert torch.equal(model.fc.weight, average)


def test_best_checkpoint_is_the_most_robust_on_validation(finished):
    rows = rows_of(finished)
    best = max(rows, key=lambda row: (float(row['eval_robust']), -int(row['epoch'])))
    checkpoint = torch.load(finished / 'model_best.pth.tar', weights_only=True)
    assert (checkpoint['epoch'], checkpoint['metric']) == (int(best['epoch']), float(best['eval_robust']))


def test_best_checkpoint_can_be_the_most_accurate(tmp_path):
    assert train(tmp_path, '--task', 'plain', '--eval-metric', 'clean', '--epochs', '4') == 0
    rows = rows_of(tmp_path / 'run')
    assert [row['eval_clean'] for row in rows] != [row['eval_robust'] for row in rows]
    metric = torch.load(tmp_path / 'run' / 'model_best.pth.tar', weights_only=True)['metric']
    assert metric == max(float(row['eval_clean']) for row in rows)


def test_validation_gives_the_reports_numbers(finished, tmp_path, capsys):
    argv = ['--checkpoint', str(finished / 'model_best.pth.tar'), '--pgd-steps', '3', '--n-examples', '4', '--device',
            'cpu', '--no-trust', '--output', str(tmp_path / 'validation')]
    assert validate_command(argv) == 0
    again, first = (
        json.loads((folder / 'report.json').read_text()) for folder in (tmp_path / 'validation', finished))
    for name in ('clean', 'pgd', 'autoattack'):
        assert (again[name]['correct'], again[name]['total']) == (first[name]['correct'], first[name]['total'])
    assert again['checkpoint_sha256'] == first['checkpoint_sha256']
    assert 'state_dict_ema of' in capsys.readouterr().out
    assert validate_command(argv) == 2  # does not write over it
    assert 'holds a report.json already' in capsys.readouterr().err


def test_one_line_an_epoch_without_a_terminal(tmp_path, capsys):
    assert train(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    epochs = [line for line in lines if line.startswith('epoch ')]
    assert len(epochs) == 2
    for line in epochs:
        for part in ('loss', 'under attack', 'clean', 'robust', 'alpha', 'beta', 'images/s', '% waiting for data'):
            assert part in line
    assert any(line.startswith('about ') and 'of training' in line for line in lines)
    assert '360 / 360' in lines[-3] or ' / 360' in ''.join(lines)


def test_same_seed_same_weights_other_seed_other_weights(tmp_path):
    weights = []
    for experiment, seed in (('a', '0'), ('b', '0'), ('c', '1')):
        assert train(tmp_path, '--epochs', '1', '--seed', seed, experiment=experiment) == 0
        checkpoint = torch.load(tmp_path / experiment / 'last.pth.tar', weights_only=True)
        weights.append(checkpoint['state_dict']['fc.weight'])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_plain_training_meets_no_attack(tmp_path, monkeypatch):
    original, calls = AdversarialTrainingTask.images, []

    def images(self, x, y):
        calls.append(x)
        result = original(self, x, y)
        assert result is x, 'plain training attacked its images'
        return result

    monkeypatch.setattr(AdversarialTrainingTask, 'images', images)
    assert train(tmp_path, '--task', 'plain', '--epochs', '1') == 0
    assert calls
    row = rows_of(tmp_path / 'run')[0]
    assert float(row['eval_clean']) > 50


def test_initial_checkpoint_is_where_training_starts(finished, tmp_path):
    start = ['--initial-checkpoint', str(finished / 'last.pth.tar')]
    assert train(tmp_path, *start, '--epochs', '1', '--lr', '0', '--min-lr', '0') == 0
    old, new = (torch.load(folder / 'last.pth.tar', weights_only=True) for folder in (finished, tmp_path / 'run'))
    assert torch.equal(new['state_dict']['fc.weight'], old['state_dict_ema']['fc.weight'])


@pytest.mark.parametrize('decayed', [True, False])
def test_weight_decay_of_alpha_is_the_settings_choice(tmp_path, decayed):
    flag = '--no-filter-bias-and-bn' if decayed else '--filter-bias-and-bn'
    trainer = open_trainer([*FAST, '--output', str(tmp_path), flag])
    alpha = trainer.task.trainable_module.get_parameter('layer1.0.act1.alpha')
    groups = [g['weight_decay'] for g in trainer.optimizer.param_groups if any(p is alpha for p in g['params'])]
    assert groups == [5e-4 if decayed else 0.]


@pytest.mark.parametrize('fraction, synthetic', [('0', 0), ('0.25', 16), ('1', 64)])
def test_batches_hold_the_share_asked_for(tmp_path, fraction, synthetic):
    trainer = open_trainer([*FAST, '--output', str(tmp_path), '--synthetic-fraction', fraction])
    assert int(next(iter(trainer.data.epoch(0))).synthetic.sum()) == synthetic


def test_archives_of_synthetic_images_are_read(tmp_path):
    archive = tmp_path / 'synthetic.npz'
    np.savez(archive, image=np.full((20, 8, 8, 1), 255, np.uint8), label=np.arange(20) % 10)
    trainer = open_trainer([*FAST, '--output', str(tmp_path), '--synthetic', str(archive)])
    batch = next(iter(trainer.data.epoch(0)))
    assert (batch.x[batch.synthetic] == 1).all() and int(batch.synthetic.sum()) == 32


def save_archive(path, value, count=20):
    np.savez(path, image=np.full((count, 8, 8, 1), value, np.uint8), label=np.arange(count) % 10)
    return str(path)


def first_batch(tmp_path, *argv):
    trainer = open_trainer([*FAST, '--output', str(tmp_path), *argv])
    return next(iter(trainer.data.epoch(0)))


def test_weights_make_sources_of_paths_and_patterns(tmp_path):
    """The parts of a pattern are one source; without weights all paths are."""
    white, _, _ = (
        save_archive(tmp_path / f'{name}.npz', value) for name, value in (('w', 255), ('part0', 51), ('part1', 51)))
    paths = ['--synthetic', white, str(tmp_path / 'part*.npz')]
    counts = {}
    for name, weights in (('joined', []), ('weighted', ['--synthetic-weights', '3', '1'])):
        batch = first_batch(tmp_path, *paths, *weights)
        shade = batch.x[batch.synthetic, 0, 0, 0]
        counts[name] = [int(torch.isclose(shade, torch.tensor(value)).sum()) for value in (1., 0.2)]
    assert counts['weighted'] == [24, 8]
    assert sum(counts['joined']) == 32 and 4 <= counts['joined'][0] <= 18  # 20 of 60 images, 32 of them in a batch


def test_augmentation_and_smoothing_are_the_settings_choice(tmp_path):
    white = ['--synthetic', save_archive(tmp_path / 'w.npz', 255), '--cutout', '4', '--reprob', '1', '--cutmix', '1']
    plain, same = (first_batch(tmp_path, *white, '--synthetic-augment', choice) for choice in ('none', 'same'))
    assert (plain.x[plain.synthetic] == 1).all() and not (same.x[same.synthetic] == 1).flatten(1).all(1).any()
    smooth = first_batch(tmp_path, '--smoothing', '0.2', '--synthetic-smoothing', '0.5')
    assert smooth.target[~smooth.synthetic].max(1).values.unique().tolist() == pytest.approx([0.82])
    assert smooth.target[smooth.synthetic].max(1).values.unique().tolist() == pytest.approx([0.55])


def test_soft_targets_and_a_thread_train(tmp_path):
    soft = ['--smoothing', '0.1', '--cutmix', '1', '--color-jitter', '0.2', '--prefetch', '--data-on-device', 'yes']
    for experiment, task in (('attacked', 'pgd-at'), ('plain', 'plain')):
        assert train(tmp_path, *soft, '--task', task, '--epochs', '1', experiment=experiment) == 0
        (row,) = rows_of(tmp_path / experiment)
        assert math.isfinite(float(row['train_loss'])) and 0 <= float(row['train_data_wait']) < 100


def test_prefetching_changes_nothing(tmp_path):
    weights = []
    for flag in ('--prefetch', '--no-prefetch'):
        assert train(tmp_path, flag, '--task', 'plain', '--epochs', '1', experiment=flag[2:]) == 0
        checkpoint = torch.load(tmp_path / flag[2:] / 'last.pth.tar', weights_only=True)
        weights.append(checkpoint['state_dict']['fc.weight'])
    assert torch.equal(*weights)


@pytest.fixture
def archives(tmp_path):
    """An archive to train on and one to test on: two classes, dark and bright, 3x8x8."""
    paths = []
    for number, name in enumerate(('train.npz', 'test.npz')):
        labels = np.arange(120) // 60
        noise = np.random.RandomState(number).randint(0, 90, (120, 8, 8, 3))
        paths.append(tmp_path / name)
        np.savez(paths[-1], image=(noise + 160 * labels[:, None, None, None]).astype(np.uint8), label=labels)
    return [str(path) for path in paths]


def test_archive_as_data_set_trains_to_a_report(tmp_path, archives):
    argv = ['--dataset', archives[0], '--test-data', archives[1], '--num-classes', '2', '--val-size', '20',
            '--synthetic-fraction', '0', '--task', 'plain', '--lr', '0.05', '--epochs', '6']
    assert train(tmp_path, *argv) == 0
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert report['clean']['total'] == 120 and report['clean']['correct'] > 100
    settings = yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())
    assert settings['test_data'] == [archives[1]] and settings['val_size'] == 20
    # the checkpoint says by itself which images it was trained and is to be measured on
    for split, total in (('test', 120), ('val', 20), ('train', 100)):
        trainer = open_measurement(['--checkpoint', str(tmp_path / 'run' / 'model_best.pth.tar'), '--split', split])
        assert len(trainer.data) == total and trainer.data.images.dtype == torch.float32


def test_images_read_while_training_are_not_measured(tmp_path, archives, monkeypatch, capsys):
    monkeypatch.setattr('timm_paf.data.archives.IN_MEMORY', 0)
    argv = ['--dataset', archives[0], '--test-data', archives[1], '--num-classes', '2', '--val-size', '20',
            '--synthetic-fraction', '0', '--task', 'plain', '--epochs', '1']
    assert train(tmp_path, *argv) == 0
    checkpoint = str(tmp_path / 'run' / 'model_best.pth.tar')
    assert len(open_measurement(['--checkpoint', checkpoint]).data) == 120
    capsys.readouterr()
    argv = ['--checkpoint', checkpoint, '--split', 'train']
    assert validate_command(argv) == 2
    error = capsys.readouterr().err
    assert 'are read while training' in error and error.count('\n') == 1


def test_data_that_change_stop_the_run_and_keep_the_checkpoint(tmp_path, capsys, monkeypatch):
    original, calls = MixedBatches.epoch, []

    def epoch(self, *arguments):
        calls.append(0)
        for step, batch in enumerate(original(self, *arguments)):
            if len(calls) == 2 and step == 3:
                raise DataChanged('part1.npz: the file has changed since it was opened')
            yield batch

    monkeypatch.setattr(MixedBatches, 'epoch', epoch)
    assert train(tmp_path, '--task', 'plain') == 1
    error = capsys.readouterr().err
    assert error.startswith('stopped: part1.npz: the file has changed') and error.count('\n') == 1
    assert torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=True)['epoch'] == 0


def test_verification_asks_for_every_archive(tmp_path, archives, monkeypatch):
    asked = []
    monkeypatch.setattr('timm_paf.engine.data.verify_archive', lambda source, progress: asked.append(source.name))
    argv = ['--dataset', archives[0], '--test-data', archives[1], '--num-classes', '2', '--val-size', '20',
            '--synthetic', archives[1], '--output', str(tmp_path)]
    open_trainer([*FAST, *argv])
    assert asked == []
    open_trainer([*FAST, *argv, '--verify-data'])
    assert len(asked) == 2


@pytest.mark.parametrize(('text', 'size'), [('0', 0), ('4', 4 * 2**30), ('0.5', 2**29), ('25%', 250), ('100%', 1000)])
def test_memory_budget(text, size, monkeypatch):
    monkeypatch.setattr('timm_paf.engine.data.free_bytes', lambda device: 1000)
    assert memory_budget(text, torch.device('cpu')) == size


def test_learning_rate_scales_with_the_batch_and_ends_at_the_minimum(tmp_path):
    trainer = open_trainer([*FAST, '--output', str(tmp_path), '--batch-size', '256'])
    assert trainer.config.lr == pytest.approx(0.2)
    trainer.schedule.step_update(num_updates=2 * len(trainer.data))
    assert trainer.optimizer.param_groups[0]['lr'] == pytest.approx(0.001)


BAD = {
    'model': (['--model', 'wrn10_2_psilou'], 'timm knows no such model; did you mean'),
    'eps zero': (['--eps', '0'], 'eps = 0: expected a number greater than 0'),
    'eps text': (['--eps', 'big'], "eps = 'big': expected a number or a fraction such as 8/255"),
    'eps unit': (['--eps', '8'], 'Did you mean 8/255'),
    'steps': (['--attack-steps', '0'], '--attack-steps = 0'),
    'fraction': (['--synthetic-fraction', '1.5'], '--synthetic-fraction = 1.5'),
    'fraction nan': (['--synthetic-fraction', 'nan'], '--synthetic-fraction = nan'),
    'dataset': (['--dataset', 'imagenet'], "--dataset = 'imagenet': there is no such data set; expected digits"),
    'data folder': (['--dataset', 'torch/cifar10'], 'torch/cifar10: give data_dir'),
    'data set not there': (
        ['--dataset', 'torch/cifar10', '--data-dir', 'nowhere'], 'see --data-dir and --dataset-download'),
    'budget': (['--data-on-device-budget', 'much'], "--data-on-device-budget = 'much': expected a number of GiB"),
    'budget of 101 %': (['--data-on-device-budget', '101%'], 'share of the free memory'),
    'weights': (['--synthetic-weights', '1', '2'], 'got 2 values of synthetic_weights'),
    'weight of 0': (['--synthetic-weights', '0'], 'got synthetic weight 0'),
    'pattern': (['--synthetic', 'nowhere*.npz'], 'nowhere*.npz: no file fits this pattern'),
    'smoothing': (['--smoothing', '2'], '--smoothing = 2.0'),
    'erasing': (['--reprob', '-1'], '--reprob = -1.0'),
    'channels': (['--in-chans', '2'], '--in-chans = 2'),
    'crop': (['--crop-pct', '0'], '--crop-pct = 0.0'),
    'validation': (['--val-size', '0'], '--val-size = 0'),
    'flag': (['--epsilonn', '1'], 'unrecognized arguments: --epsilonn'),
    'synthetic': (['--synthetic', 'nowhere.npz'], 'nowhere.npz: no such file'),
    'no synthetic': (['--synthetic'], 'synthetic_fraction=0.5 without synthetic images'),
    'checkpoint': (['--initial-checkpoint', 'nowhere.pth'], 'checkpoint nowhere.pth: there is no such file'),
    'device': (['--device', 'abacus'], '--device = abacus: not available'),
    'task': (['--task', 'marta'], "--task = 'marta': expected one of plain, pgd-at, trades, mart"),
    'optimizer': (['--opt', 'sgdd'], 'sgdd'),
    'schedule': (['--sched', 'cosinus'], 'cosinus'),
    'penalty': (['--beta-penalty', '-1'], '--beta-penalty = -1.0'),
    'step size': (['--attack-step-size', '0'], '--attack-step-size = 0'),
    'clip': (['--beta-grad-clip', '0'], 'beta_grad_clip = 0.0'),
    'seed': (['--seed', '-1'], '--seed = -1'),
}


@pytest.mark.parametrize('argv, message', BAD.values(), ids=BAD.keys())
def test_bad_settings_are_one_line_and_write_nothing(tmp_path, refused, argv, message):
    refused(train(tmp_path, *argv), message)


def test_foreign_checkpoint_is_one_line(tmp_path, capsys, finished):
    foreign = tmp_path / 'notes.pth.tar'
    foreign.write_text('shopping list')
    assert train(tmp_path, '--initial-checkpoint', str(foreign)) == 2
    assert 'cannot be read' in capsys.readouterr().err
    assert train(tmp_path, '--initial-checkpoint', str(finished / 'last.pth.tar'), '--model', 'wrn10_2_relu') == 2
    assert 'does not fit WideResNet' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['notes.pth.tar']


def test_finished_run_is_not_written_over(finished, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in finished.iterdir()}
    assert train(finished.parent) == 2
    assert 'holds a finished run; choose another --experiment' in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_unfinished_run_is_not_written_over(tmp_path, capsys):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'last.pth.tar').write_text('precious')
    assert train(tmp_path) == 2
    assert 'is not empty' in capsys.readouterr().err


def test_divergence_names_the_step_and_keeps_the_last_checkpoint(tmp_path, capsys, monkeypatch):
    """NaN from the third update of the second epoch on."""
    original, calls = AdversarialTrainingTask.forward, []

    def forward(self, x, y):
        result = original(self, x, y)
        calls.append(0)
        if len(calls) == 40 + 3:  # 40 updates an epoch at 32 real images in a batch
            result['loss'] = result['loss'] * float('nan')
        return result

    monkeypatch.setattr(AdversarialTrainingTask, 'forward', forward)
    assert train(tmp_path) == 1
    assert 'the loss became NaN or infinite at step 2 of epoch 2' in capsys.readouterr().err
    for name in ('last.pth.tar', 'model_best.pth.tar'):
        checkpoint = torch.load(tmp_path / 'run' / name, weights_only=True)
        assert checkpoint['epoch'] == 0
        assert all(value.isfinite().all() for value in checkpoint['state_dict'].values())
    assert not (tmp_path / 'run' / 'report.json').exists()


@pytest.mark.parametrize('argv, message', [
    ([], '--checkpoint is missing'), (['--checkpoint', 'nowhere.pth'], 'there is no such file'),
    (['--checkpoint', 'FINISHED', '--eps', '8'], 'Did you mean 8/255'),
    (['--checkpoint', 'FINISHED', '--model', 'resnet18_relu'], 'does not fit CifarResNet'),
    (['--checkpoint', 'FINISHED', '--dataset', 'cifar'], 'there is no such data set'),
], ids=['missing', 'absent', 'eps', 'model', 'dataset'])
def test_validation_names_what_is_wrong(finished, capsys, argv, message):
    argv = [str(finished / 'last.pth.tar') if word == 'FINISHED' else word for word in argv]
    assert validate_command(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
