"""Runs that are interrupted in every way go on to the result of a run that never was."""
import json
import os
import random
import re
import shutil
import signal
import time

import pytest
import tiny_run
import torch
from tiny_run import FAST, assert_same_result, launch, open_trainer, rows_of, stop_at, wait_for, weights_of

from timm_paf.engine import train as train_command
from timm_paf.engine.progress import AttackView

EVERYTHING = ['--model', 'tiny_norm', '--model-ema', '--model-ema-warmup', '--sched', 'onecycle']


def train(folder, *argv, name='run'):
    return tiny_run.train(folder, *EVERYTHING, *argv, name=name)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run of twelve updates in two epochs that nothing happened to."""
    folder = tmp_path_factory.mktemp('whole')
    os.environ.setdefault('TIMM_PAF_CACHE', str(folder / 'cache'))
    assert train(folder) == 0
    return folder / 'run'


@pytest.mark.parametrize('update, number', [
    (0, signal.SIGTERM), (3, signal.SIGINT), (5, signal.SIGTERM), (8, signal.SIGINT), (11, signal.SIGTERM)], ids=str)
def test_stopped_run_goes_on_to_the_same_result(whole, tmp_path, capsys, update, number):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, update, number)
        assert train(tmp_path) == 3
    error = capsys.readouterr().err
    assert f'interrupted: {number.name} at update {update + 1}' in error and error.count('\n') == 1
    assert train(tmp_path, '--resume', 'auto') == 0
    assert f'update {update + 1}\n' in capsys.readouterr().out
    assert_same_result(whole, tmp_path / 'run')


@pytest.mark.parametrize('part, changed', [
    ('clean', []), ('PGD-2', []), ('PGD-2', ['--resume-changed']),
    ('PGD-2', ['--resume-changed', '--pgd-steps', '3'])], ids=str)
def test_a_signal_in_the_final_measurement(whole, tmp_path, capsys, part, changed):
    """It stops at the next batch, and resumes after the last one; a measurement with other settings starts again."""
    original, seen, signals = AttackView.progress, [], []
    state = tmp_path / 'run' / 'autoattack'

    def progress(self, name, done, total, *more):
        seen.append((name, done, (state / 'marker').exists()))
        if (name, done) == (part, 20) and not signals:
            signals.append(part)
            os.kill(os.getpid(), signal.SIGINT)
        original(self, name, done, total, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttackView, 'progress', progress)
        assert train(tmp_path, '--eval-batch-size', '10') == 3
        assert 'SIGINT' in capsys.readouterr().err and not (tmp_path / 'run' / 'report.json').exists()
        assert seen[-1][:2] in ((part, 20), (part, 30))
        seen.clear()
        (state / 'marker').touch()
        assert train(tmp_path, '--eval-batch-size', '10', '--resume', 'auto', *changed) == 0  # PGD on about 40 images
    again = '--pgd-steps' in changed
    assert sorted({name for name, *_ in seen}) == [f'PGD-{2 + again}', 'clean']
    assert {kept for *_, kept in seen} == {not again}
    if again:
        return
    reports = [json.loads((folder / 'report.json').read_text()) for folder in (whole, tmp_path / 'run')]
    assert reports[0]['pgd']['correct'] == reports[1]['pgd']['correct']
    assert not state.exists()


@pytest.mark.parametrize('options', [
    ['--sched', 'multistep', '--decay-milestones', '1', '--no-sched-on-updates'],
    ['--opt', 'adamw', '--lr', '0.001', '--sched', 'cosine', '--warmup-epochs', '1', '--clip-grad', '0.5'],
    ['--amp', '--amp-dtype', 'bfloat16', '--grad-accum-steps', '2', '--smoothing', '0.1'],
    ['--amp', '--amp-dtype', 'float16', '--no-model-ema'],
    ['--task', 'plain', '--prefetch', '--sched', 'none'],
], ids=['multistep', 'adamw', 'bf16', 'fp16', 'plain'])
def test_every_part_has_its_state_stored(tmp_path, options):
    assert train(tmp_path, *options, name='whole') == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 8)
        assert train(tmp_path, *options) == 3
    assert train(tmp_path, *options, '--resume', 'auto') == 0
    assert_same_result(tmp_path / 'whole', tmp_path / 'run')


class Killed(BaseException):
    """Ends a run as a kill does: nothing catches it."""


@pytest.mark.parametrize('call', range(8))
def test_kill_after_every_change_of_a_file_name(whole, tmp_path, call):
    """A checkpoint takes several renamings; whichever was the last, there is one to go on from."""
    original, calls = os.replace, []

    def replace(*arguments):
        calls.append(arguments)
        original(*arguments)
        if len(calls) == call + 1:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('os.replace', replace)
        with pytest.raises(Killed):
            train(tmp_path, '--checkpoint-minutes', '0')
    assert train(tmp_path, '--resume', 'auto') == 0
    assert_same_result(whole, tmp_path / 'run')
    assert not list((tmp_path / 'run').glob('.*'))


@pytest.mark.parametrize('writer', [
    'timm_paf.engine.trainer.training_page', 'timm_paf.evaluation.RobustnessReport.save'])
def test_kill_at_the_very_end_leaves_a_run_to_finish(whole, tmp_path, writer):
    def killed(*arguments, **more):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, killed)
        with pytest.raises(Killed):
            train(tmp_path)
    assert train(tmp_path, '--resume', 'auto') == 0
    assert_same_result(whole, tmp_path / 'run')
    assert sorted(p.name for p in (tmp_path / 'run').iterdir()) == sorted(p.name for p in whole.iterdir())


def interrupted(folder, update=8):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, update)
        assert train(folder) == 3
    return folder / 'run'


def tear(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize('damage', [tear, flip, lambda path: path.write_bytes(b'')], ids=['torn', 'bit', 'empty'])
def test_damaged_newest_checkpoint_falls_back(whole, tmp_path, capsys, damage):
    folder = interrupted(tmp_path)
    damage(folder / 'last.pth.tar')
    assert train(tmp_path, '--resume', 'auto') == 0
    output = ' '.join(capsys.readouterr().out.split())
    assert 'last.pth.tar' in output and f'resuming from {folder}/previous.pth.tar: epoch 2, update 6' in output
    assert_same_result(whole, folder)


@pytest.mark.parametrize('begun', [False, True], ids=['not there', 'nothing sound'])
def test_auto_starts_a_run_and_leaves_a_finished_one(whole, tmp_path, capsys, begun):
    if begun:
        tear(interrupted(tmp_path, update=2) / 'last.pth.tar')
    assert train(tmp_path, '--resume', 'auto') == 0
    assert ('so the run starts again' in ' '.join(capsys.readouterr().out.split())) is begun
    assert_same_result(whole, tmp_path / 'run')
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'run').iterdir()}
    capsys.readouterr()
    assert train(tmp_path, '--resume', 'auto') == 0
    assert 'is finished; nothing to do' in ' '.join(capsys.readouterr().out.split())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'run').iterdir()} == before


def test_path_brings_its_own_settings(whole, tmp_path, monkeypatch, capsys):
    """Without -c and other flags the run's settings hold, from wherever the command is given."""
    folder = interrupted(tmp_path)
    for path in ('run', 'run/last.pth.tar'):
        again = tmp_path / f'again{len(path)}'
        shutil.copytree(folder, again / 'run')
        monkeypatch.chdir(again)
        assert train_command(['--resume', path]) == 0
        assert_same_result(whole, again / 'run')


def test_earlier_checkpoint_goes_back(whole, tmp_path):
    """From the end of the first epoch, with the second one already done."""
    shutil.copytree(whole, tmp_path / 'run')
    (tmp_path / 'run' / 'report.json').unlink()
    path = tmp_path / 'run' / 'previous.pth.tar'
    assert torch.load(path, weights_only=True)['epoch'] == 0
    assert train_command(['--resume', str(path)]) == 0
    assert_same_result(whole, tmp_path / 'run')


CHANGED = {
    'batch size': (['--batch-size', '64'], 'batch_size: 32 -> 64'),
    'two': (['--momentum', '0.5', '--seed', '3'], 'seed: 0 -> 3; momentum: 0.9 -> 0.5'),
    'images': (['--val-size', '7', '--num-synthetic', '600'], 'synthetic images: [500] -> [600]'),
}


@pytest.mark.parametrize('flags, message', CHANGED.values(), ids=CHANGED.keys())
def test_changed_settings_are_named_and_refused(tmp_path, capsys, flags, message):
    folder = interrupted(tmp_path)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert train(tmp_path, '--resume', 'auto', *flags) == 2
    error = capsys.readouterr().err
    assert message in error and '--resume-changed' in error and error.splitlines()[-1].startswith('error: ')
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_from_before_a_setting_is_not_continued_in_another_way(tmp_path, capsys):
    """Runs from before --alpha-grad-clip did not clip."""
    folder = interrupted(tmp_path)
    for path in folder.glob('*.pth.tar'):
        state = torch.load(path, weights_only=True)
        state['args'].pop('alpha_grad_clip', None)  # names of one file share its content
        torch.save(state, path)
    assert train(tmp_path, '--resume', 'auto') == 2
    assert 'alpha_grad_clip: None -> 0.01' in capsys.readouterr().err
    assert train(tmp_path, '--resume', 'auto', '--alpha-grad-clip', 'none') == 0


def test_changed_settings_hold_when_allowed(tmp_path):
    folder = interrupted(tmp_path)
    flags = ['--resume', 'auto', '--resume-changed', '--sched', 'none', '--lr', '0', '--weight-decay', '0.25',
             '--momentum', '0.5', '--epochs', '3']
    before = weights_of(folder / 'last.pth.tar')
    trainer = open_trainer([*FAST, *EVERYTHING, '--output', str(tmp_path), '--experiment', 'run', *flags])
    (group,) = trainer.optimizer.param_groups
    assert (group['lr'], group['weight_decay'], group['momentum']) == (0., 0.25, 0.5)
    trainer.fit()
    assert [row['epoch'] for row in rows_of(folder)] == ['0', '1', '2']
    assert torch.equal(weights_of(folder / 'last.pth.tar')['fc.weight'], before['fc.weight'])


def test_changed_settings_are_allowed_for_one_command(tmp_path, capsys):
    folder = interrupted(tmp_path)
    assert train_command(['--resume', str(folder), '--resume-changed', '--momentum', '0.5']) == 0
    assert train_command(['--resume', str(folder)]) == 0
    assert 'is finished; nothing to do' in ' '.join(capsys.readouterr().out.split())
    (folder / 'report.json').unlink()
    assert train_command(['--resume', str(folder), '--momentum', '0.4']) == 2
    assert 'momentum: 0.5 -> 0.4' in capsys.readouterr().err


@pytest.mark.parametrize('update', [8, 11], ids=['in an epoch', 'at its end'])
def test_other_number_of_processes(whole, tmp_path, capsys, update):
    """The sums of the epoch are those of all processes before; here of two that did the same."""
    path = interrupted(tmp_path, update) / 'last.pth.tar'
    state = torch.load(path, weights_only=True)
    state['run']['ranks'] *= 2
    torch.save(state, path)
    assert train(tmp_path, '--resume', 'auto') == 0
    assert 'number of processes: 2 before, 1 now' in ' '.join(capsys.readouterr().out.split())
    one, two = (rows_of(folder)[-1] for folder in (whole, tmp_path / 'run'))
    assert float(one['train_loss']) == pytest.approx(float(two['train_loss']), rel=0.05)
    if update == 11:
        assert (one['train_loss'], one['train_robust']) == (two['train_loss'], two['train_robust'])


def test_how_a_run_is_done_may_change(whole, tmp_path):
    interrupted(tmp_path)
    flags = ['--log-interval', '3', '--checkpoint-hist', '2', '--data-on-device', 'yes', '--prefetch']
    assert train(tmp_path, '--resume', 'auto', *flags) == 0
    assert_same_result(whole, tmp_path / 'run')


REFUSED = {
    'auto without a name': (['--resume', 'auto'], '--resume auto needs --experiment'),
    'no file': (['--resume', 'nowhere.pth.tar'], 'there is no such file'),
    'weights only': (['--resume', 'weights.pth'], 'holds no state of a run; start from it with --initial-checkpoint'),
    'another folder': (['--resume', 'weights.pth', '--experiment', 'x'], 'leave out --output and --experiment'),
    'empty folder': (['--resume', '.'], 'no checkpoint to resume from'),
}


@pytest.mark.parametrize('argv, message', REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_resumed_is_one_line(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': {}}, 'weights.pth')
    assert train_command(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['weights.pth']


def test_full_disk_keeps_the_checkpoint_before(whole, tmp_path, capsys, monkeypatch):
    original, calls = torch.save, []

    class Full:
        """A file on a disk with space for some parts of a checkpoint."""
        def __init__(self, file):
            self.file = file

        def write(self, content):
            if self.file.tell() > 3000:
                raise OSError(28, 'No space left on device')
            return self.file.write(content)

        def __getattr__(self, name):
            return getattr(self.file, name)

    def save(state, file):
        calls.append(0)
        original(state, Full(file) if len(calls) == 2 else file)

    monkeypatch.setattr('torch.save', save)
    assert train(tmp_path, '--no-model-ema') == 1
    assert 'cannot be written ([Errno 28] No space left on device)' in capsys.readouterr().err
    assert torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=True)['epoch'] == 0


def test_full_disk_before_the_first_checkpoint(tmp_path, capsys, monkeypatch):
    def full(text, path):
        raise OSError(28, 'No space left on device', str(path))

    monkeypatch.setattr('timm_paf.engine.trainer.write_text', full)
    assert train(tmp_path) == 1
    assert re.search(r"^stopped: .*No space left on device: '.*args.yaml'$", capsys.readouterr().err, re.MULTILINE)


LONG = ['--epochs', '5', '--updates-per-epoch', '50']


def killed_and_resumed(folder, kills, rng, seconds):
    """Start a run over and over, killing it at random moments, until it ends by itself; how often it was unfinished."""
    argv = [*EVERYTHING, *LONG, '--output', str(folder), '--experiment', 'run', '--resume', 'auto',
            '--checkpoint-minutes', '0.0005']
    unfinished = 0
    for number in kills:
        process = launch(*argv)
        wait_for(process, 'parameters')
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(number)
        _, error = process.communicate(timeout=120)
        if (folder / 'run' / 'report.json').exists():
            break
        assert process.returncode == (3 if number == signal.SIGTERM else -number), error
        unfinished += 1
    process = launch(*argv)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert (folder / 'run' / 'report.html').exists()
    return unfinished


@pytest.mark.slow
def test_twenty_killed_runs(tmp_path):
    assert train(tmp_path, *LONG, name='whole') == 0
    rng = random.Random(1)
    unfinished = 0
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        unfinished += killed_and_resumed(folder, [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL], rng, 1.5)
        assert_same_result(tmp_path / 'whole', folder / 'run')
    assert unfinished >= 30  # or it was not the training that was killed
