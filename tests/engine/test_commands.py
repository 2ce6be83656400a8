"""The commands as a user runs them, small."""
import csv
import json
import math
import os

import numpy as np
import pytest
import timm
import tiny_run
import torch
import yaml
from tiny_run import FAST, open_measurement, open_trainer, weights_of

from timm_paf.data import DataChanged, MixedBatches
from timm_paf.engine import validate as validate_command
from timm_paf.engine.data import memory_budget
from timm_paf.tasks import AdversarialTrainingTask

MODEL = 'wrn10_2_pssilu'


def train(folder, *argv, name='run', model=MODEL):
    return tiny_run.train(folder, *argv, name=name, model=model)


def opened(folder, *argv):
    return open_trainer([*FAST, '--model', MODEL, '--output', str(folder), *argv])


def rows_of(folder):
    return list(csv.DictReader((folder / 'summary.csv').read_text().splitlines()))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run with everything on, AutoAttack included."""
    folder = tmp_path_factory.mktemp('finished')
    os.environ.setdefault('TIMM_PAF_CACHE', str(folder / 'cache'))
    flags = ['--autoattack', 'standard', '--n-examples', '4', '--model-ema', '--model-ema-decay', '0.9']
    assert train(folder, *flags) == 0
    return folder / 'run'


def test_files_of_a_run(finished):
    names = {'args.yaml', 'summary.csv', 'last.pth.tar', 'model_best.pth.tar', 'report.json', 'report.html'}
    assert names <= {path.name for path in finished.iterdir()}
    settings = yaml.safe_load((finished / 'args.yaml').read_text())
    assert [settings[name] for name in ('model', 'eps', 'epochs', 'device')] == [MODEL, '0.2', 2, 'cpu']
    rows = rows_of(finished)
    assert [row['epoch'] for row in rows] == ['0', '1'] and rows[0]['act_alpha'] != rows[1]['act_alpha']
    assert {'train_loss', 'train_robust', 'train_data_wait', 'eval_clean', 'eval_robust', 'act_beta', 'act_alpha_grad',
            'act_finite_curvature', 'lr'} <= set(rows[0])
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    report = json.loads((finished / 'report.json').read_text())
    for name, total in (('clean', 360), ('pgd', 360), ('autoattack', 4)):
        assert type(report[name]['correct']) is int and report[name]['total'] == total
    assert report['autoattack']['components'] == ['apgd-ce', 'apgd-t', 'fab-t', 'square']
    assert (report['pgd']['eps'], report['pgd']['steps']) == ('0.2', 2)


def test_checkpoints_are_timms_and_plain(finished):
    best = max(rows_of(finished), key=lambda row: (float(row['eval_robust']), -int(row['epoch'])))
    for name in ('last.pth.tar', 'model_best.pth.tar'):
        checkpoint = torch.load(finished / name, weights_only=True)
        assert {'state_dict', 'state_dict_ema', 'optimizer', 'epoch', 'metric', 'arch', 'args'} <= set(checkpoint)
        raw, average = (checkpoint[key]['fc.weight'] for key in ('state_dict', 'state_dict_ema'))
        assert not torch.equal(raw, average)
        model = timm.create_model(checkpoint['arch'], in_chans=1)
        timm.models.load_checkpoint(model, str(finished / name), use_ema=True, weights_only=True)
        assert torch.equal(model.fc.weight, average)
    assert (checkpoint['epoch'], checkpoint['metric']) == (int(best['epoch']), float(best['eval_robust']))


def test_best_checkpoint_can_be_the_most_accurate(tmp_path):
    assert train(tmp_path, '--task', 'plain', '--eval-metric', 'clean', '--epochs', '4') == 0
    rows = rows_of(tmp_path / 'run')
    assert [row['eval_clean'] for row in rows] != [row['eval_robust'] for row in rows]
    best = max(float(row['eval_clean']) for row in rows)
    assert weights_of(tmp_path / 'run' / 'model_best.pth.tar', 'metric') == best


def test_validation_gives_the_reports_numbers(finished, tmp_path, capsys):
    argv = ['--checkpoint', str(finished / 'model_best.pth.tar'), '--pgd-steps', '2', '--n-examples', '4', '--device',
            'cpu', '--no-trust', '--output', str(tmp_path / 'validation')]
    assert validate_command(argv) == 0
    again, first = (
        json.loads((folder / 'report.json').read_text()) for folder in (tmp_path / 'validation', finished))
    for name in ('clean', 'pgd', 'autoattack'):
        assert (again[name]['correct'], again[name]['total']) == (first[name]['correct'], first[name]['total'])
    assert again['checkpoint_sha256'] == first['checkpoint_sha256']
    assert validate_command(argv) == 2  # does not write over it
    assert 'holds a report.json already' in capsys.readouterr().err


def test_plain_training_meets_no_attack(tmp_path, monkeypatch):
    monkeypatch.setattr('timm_paf.attacks.PGD.__call__', lambda *_, **__: pytest.fail('attacked'))
    trainer = opened(tmp_path, '--task', 'plain')
    assert len([trainer.train_step(batch) for batch in trainer.batches()]) == 6


def test_initial_checkpoint_is_where_training_starts(finished, tmp_path):
    start = ['--initial-checkpoint', str(finished / 'last.pth.tar')]
    assert train(tmp_path, *start, '--epochs', '1', '--lr', '0', '--min-lr', '0') == 0
    assert torch.equal(weights_of(tmp_path / 'run' / 'last.pth.tar')['fc.weight'],
                       weights_of(finished / 'last.pth.tar', 'state_dict_ema')['fc.weight'])


def save_archive(path, value, count=20):
    np.savez(path, image=np.full((count, 8, 8, 1), value, np.uint8), label=np.arange(count) % 10)
    return str(path)


def first_batch(folder, *argv):
    return next(iter(opened(folder, '--batch-size', '64', *argv).data.epoch(0)))


@pytest.mark.parametrize('fraction, synthetic', [('0', 0), ('0.25', 16), ('1', 64)])
def test_batches_hold_the_share_asked_for(tmp_path, fraction, synthetic):
    assert int(first_batch(tmp_path, '--synthetic-fraction', fraction).synthetic.sum()) == synthetic


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


@pytest.fixture
def archives(tmp_path):
    """Flags for an archive to train on and one to test on: two classes, dark and bright, 3x8x8."""
    paths = [str(tmp_path / 'train.npz'), str(tmp_path / 'test.npz')]
    for number, path in enumerate(paths):
        labels = np.arange(120) // 60
        noise = np.random.RandomState(number).randint(0, 90, (120, 8, 8, 3))
        np.savez(path, image=(noise + 160 * labels[:, None, None, None]).astype(np.uint8), label=labels)
    return ['--dataset', paths[0], '--test-data', paths[1], '--num-classes', '2', '--val-size', '20']


def test_archive_as_data_set_trains_to_a_report(tmp_path, archives, monkeypatch):
    flags = [*archives, '--synthetic-fraction', '0', '--task', 'plain', '--updates-per-epoch', '15',
             '--epochs', '5']
    assert train(tmp_path, *flags) == 0
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert report['clean']['total'] == 120 and report['clean']['correct'] > 100
    settings = yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())
    assert settings['test_data'] == [archives[3]] and settings['val_size'] == 20
    # the checkpoint says by itself which images it was trained and is to be measured on
    checkpoint = ['--checkpoint', str(tmp_path / 'run' / 'model_best.pth.tar')]
    for split, total in (('test', 120), ('val', 20), ('train', 100)):
        data = open_measurement([*checkpoint, '--split', split]).data
        assert len(data) == total and data.images.dtype == torch.float32
    monkeypatch.setattr('timm_paf.data.archives.IN_MEMORY', 0)
    read = open_measurement([*checkpoint, '--split', 'train']).data  # from the file, batch by batch
    assert torch.equal(torch.as_tensor(read.images.float()), data.images.float())


def test_data_that_change_stop_the_run_and_keep_the_checkpoint(tmp_path, capsys, monkeypatch):
    original, calls = MixedBatches.epoch, []

    def epoch(self, *arguments):
        calls.append(0)
        for step, batch in enumerate(original(self, *arguments)):
            if len(calls) == 2 and step == 3:
                raise DataChanged('part1.npz: the file has changed since it was opened')
            yield batch

    monkeypatch.setattr(MixedBatches, 'epoch', epoch)
    assert train(tmp_path, '--task', 'plain', '--updates-per-epoch', 'none', '--batch-size', '512') == 1
    error = capsys.readouterr().err
    assert error.startswith('stopped: part1.npz: the file has changed') and error.count('\n') == 1
    assert weights_of(tmp_path / 'run' / 'last.pth.tar', 'epoch') == 0


def test_verification_asks_for_every_archive(tmp_path, archives, monkeypatch):
    asked = []
    monkeypatch.setattr('timm_paf.engine.data.verify_archive', lambda source, progress: asked.append(source.name))
    every = ['train.npz/train', 'test.npz', 'train.npz/val', 'test.npz']  # the first 'test.npz' is synthetic
    for flags, names in (([], []), (['--verify-data'], every)):
        opened(tmp_path, *archives, '--synthetic', archives[3], *flags)
        assert asked == names


@pytest.mark.parametrize(('text', 'size'), [('0', 0), ('4', 4 * 2**30), ('0.5', 2**29), ('25%', 250), ('100%', 1000)])
def test_memory_budget(text, size, monkeypatch):
    monkeypatch.setattr('timm_paf.engine.data.free_bytes', lambda device: 1000)
    assert memory_budget(text, torch.device('cpu')) == size


def test_learning_rate_scales_with_the_batch_and_ends_at_the_minimum(tmp_path):
    trainer = opened(tmp_path, '--batch-size', '256', '--lr', 'none')
    assert trainer.config.lr == pytest.approx(0.2)
    trainer.schedule.step_update(num_updates=12)
    assert trainer.optimizer.param_groups[0]['lr'] == pytest.approx(0.001)


BAD = {
    'seed': (['--seed', '4294967296'], '--seed = 4294967296: expected a number of 0 or more and at most 4294967295'),
    'model': (['--model', 'wrn10_2_psilou'], 'did you mean'), 'eps': (['--eps', '8'], 'Did you mean 8/255'),
    'eps in l2': (['--eps', '128', '--norm', 'l2'], '128/255'),
    'dataset': (['--dataset', 'imagenet'], "--dataset = 'imagenet'"),
    'no files': (['--dataset', 'torch/cifar10', '--data-dir', 'nowhere'], '--dataset-download'),
    'budget': (['--data-on-device-budget', 'much'], "--data-on-device-budget = 'much'"),
    'budget of 101 %': (['--data-on-device-budget', '101%'], '--data-on-device-budget'),
    'weights': (['--synthetic-weights', '1', '2'], 'synthetic_weights'),
    'pattern': (['--synthetic', 'nowhere*.npz'], 'nowhere*.npz'), 'flag': (['--epsilonn', '1'], '--epsilonn'),
    'synthetic': (['--synthetic', 'nowhere.npz'], 'nowhere.npz'), 'none': (['--synthetic'], 'synthetic_fraction=0.5'),
    'checkpoint': (['--initial-checkpoint', 'nowhere.pth'], 'nowhere.pth'),
    'device': (['--device', 'abacus'], '--device = abacus'), 'optimizer': (['--opt', 'sgdd'], 'sgdd'),
    'parts': (['--autoattack', 'apgd-ce,sqare'], "--autoattack = 'apgd-ce,sqare'"),
    'schedule': (['--sched', 'cosinus'], 'cosinus'), 'plateau': (['--sched', 'plateau'], '--sched plateau'),
    'step size': (['--attack-step-size', '0'], '--attack-step-size = 0'),
    'beta clip': (['--beta-grad-clip', '0'], 'beta_grad_clip = 0.0'),
    'onecycle': (['--onecycle-momentum', '0.9'], '--onecycle-momentum'),
    'onecycle for adafactor': (['--sched', 'onecycle', '--opt', 'adafactor'], 'momentum'),
    'fixed': (['--act-fixed', 'gamma=1'], '--act-fixed gamma=1'),
    'fixed text': (['--act-fixed', 'alpha'], "--act-fixed = 'alpha'"),
    'fixed value': (['--act-fixed', 'alpha=two'], '--act-fixed alpha=two'),
    'model argument': (['--model-kwargs', 'colour=3'], 'colour'),
    'checkpointing': (['--model', 'tiny_smooth', '--grad-checkpointing'], '--grad-checkpointing'),
    'sync_bn': (['--sync-bn'], '--sync-bn'),
    'mode alone': (['--torchcompile-mode', 'max-autotune'], '--torchcompile-mode = max-autotune'),
    'mode': (['--torchcompile', 'inductor', '--torchcompile-mode', 'fast'], "compile = 'fast'"),
    'backend': (['--torchcompile', 'inductr'], "--torchcompile inductr: backend = 'inductr'"),
    'fused': (['--opt', 'lamb', '--opt-fused'], '--opt-fused'),
    'fused float16': (['--opt-fused', '--amp', '--amp-dtype', 'float16'], '--amp-dtype float16'),
}


@pytest.mark.parametrize('argv, message', BAD.values(), ids=BAD.keys())
def test_bad_settings_are_one_line_and_write_nothing(tmp_path, refused, argv, message):
    refused(train(tmp_path, *argv), message)


def test_foreign_checkpoint_is_one_line(tmp_path, capsys, finished):
    foreign = tmp_path / 'notes.pth.tar'
    foreign.write_text('shopping list')
    assert train(tmp_path, '--initial-checkpoint', str(foreign)) == 2
    assert str(foreign) in capsys.readouterr().err
    assert train(tmp_path, '--initial-checkpoint', str(finished / 'last.pth.tar'), model='wrn10_2_relu') == 2
    assert 'WideResNet' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['notes.pth.tar']


def test_no_run_is_written_over(finished, tmp_path, capsys):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'last.pth.tar').write_text('precious')
    for folder, message in ((finished, 'holds a finished run'), (tmp_path / 'run', 'is not empty')):
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert train(folder.parent) == 2
        assert message in capsys.readouterr().err
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_divergence_names_the_step_and_keeps_the_last_checkpoint(tmp_path, capsys, monkeypatch):
    """NaN from the third update of the second epoch on."""
    original, calls = AdversarialTrainingTask.forward, []

    def forward(self, x, y):
        result = original(self, x, y)
        calls.append(0)
        if len(calls) == 1 + 6 + 3:  # the first call is the rehearsal's
            result['loss'] = result['loss'] * float('nan')
        return result

    monkeypatch.setattr(AdversarialTrainingTask, 'forward', forward)
    assert train(tmp_path) == 1
    assert 'at step 3 of epoch 2' in capsys.readouterr().err
    for name in ('last.pth.tar', 'model_best.pth.tar'):
        checkpoint = torch.load(tmp_path / 'run' / name, weights_only=True)
        assert checkpoint['epoch'] == 0
        assert all(value.isfinite().all() for value in checkpoint['state_dict'].values())
    assert not (tmp_path / 'run' / 'report.json').exists()
