"""Runs of a sweep: interruptions, failures, time limit, and the table."""
import contextlib
import csv
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import shape_sweep

from timm_paf.engine import Trainer, cell_state, check_sweep, read_sweep, run_cell, run_sweep, submit_sweep, sweep_rows
from timm_paf.engine.sweep_table import groups_of, paired_differences

SCRIPT = Path(shape_sweep.__file__).resolve()
GRID = """
base: digits
arch: wrn10_2
settings:
  {{epochs: 2, updates_per_epoch: 3, synthetic: [], synthetic_fraction: 0, attack_steps: 1, attack_step_size: null,
   pgd_steps: 2, autoattack: {autoattack}, n_examples: 24, batch_size: 32, log_interval: 1}}
grid:
{grid}
"""
# what depends on the clock
TIMES = ('seconds', 'created')


def grid_file(folder, grid, autoattack='none'):
    path = folder / 'grid.yaml'
    path.write_text(GRID.format(grid=grid, autoattack=autoattack))
    return str(path)


def launch(config, output, *flags):
    """The command in a process group of its own."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(SCRIPT.parents[1]), *sys.path]))
    argv = [str(SCRIPT), '-c', config, '--output', str(output), '--devices', 'cpu', '--threads', '1', *flags]
    return subprocess.Popen([sys.executable, *argv], env=environment, start_new_session=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def complete(*arguments):
    """Run the command to its end, which has to be a good one."""
    process = launch(*arguments)
    text = process.communicate()[0]
    assert process.returncode == 0, text


def table(output):
    with open(output / 'results.csv', newline='') as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def wait_until(condition, process, timeout=120):
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.stdout.read()
        time.sleep(0.02)


def test_a_killed_sweep_continues_to_the_same_table(tmp_path):
    """Killed in the second cell, with its worker; the first cell is not repeated."""
    config = grid_file(tmp_path, '- activation: [relu, psilu]')
    complete(config, tmp_path / 'whole')
    output = tmp_path / 'killed'
    process = launch(config, output)
    wait_until(lambda: (output / 'psilu,seed=0' / 'last.pth.tar').exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = (output / 'relu,seed=0' / 'report.json').stat().st_mtime_ns
    while cell_state(output / 'psilu,seed=0') == 'running elsewhere':  # until the worker is gone
        time.sleep(0.02)
    assert cell_state(output / 'psilu,seed=0') == 'interrupted'
    complete(config, output)
    assert table(output) == table(tmp_path / 'whole') and len(table(output)) == 4
    assert (output / 'relu,seed=0' / 'report.json').stat().st_mtime_ns == before
    assert '<h1>' in (output / 'report.html').read_text()


@pytest.mark.slow
def test_ten_random_kills_change_nothing_in_the_table(tmp_path):
    config = grid_file(tmp_path, '- {activation: [relu, psilu, pssilu], seed: [0, 1]}', autoattack='apgd-ce')
    complete(config, tmp_path / 'whole', '--workers', '2')
    output, choice = tmp_path / 'killed', random.Random(0)
    for _ in range(10):
        process = launch(config, output, '--workers', '2')
        time.sleep(choice.uniform(4, 16))
        os.killpg(process.pid, choice.choice((signal.SIGKILL, signal.SIGTERM)))
        process.communicate()
    time.sleep(2)  # until the workers are gone
    complete(config, output, '--workers', '2')
    assert table(output) == table(tmp_path / 'whole') and len(table(output)) == 12


def test_a_failing_cell_does_not_stop_the_others_and_is_tried_again(tmp_path):
    grid = '- {activation: relu, initial_checkpoint: [%s, null]}' % (tmp_path / 'weights.pth')
    config, output = grid_file(tmp_path, grid), tmp_path / 'out'
    process = launch(config, output)
    text = process.communicate()[0]
    names = [cell.name for cell in read_sweep(config).cells]
    assert process.returncode == 1 and [cell_state(output / name) for name in names] == ['failed', 'done'], text
    assert 'weights.pth' in (output / names[0] / 'error.txt').read_text()
    assert 'weights.pth' in (output / 'report.html').read_text() and len(table(output)) == 2
    os.link(output / names[1] / 'last.pth.tar', tmp_path / 'weights.pth')  # mended
    complete(config, output)
    assert [cell_state(output / name) for name in names] == ['done', 'done']
    assert not (output / names[0] / 'error.txt').exists()


def test_the_time_limit_ends_the_sweep_with_a_checkpoint(tmp_path):
    path = Path(grid_file(tmp_path, '- activation: [relu, psilu]'))
    path.write_text(path.read_text().replace('epochs: 2', 'epochs: 2000'))
    output, started = tmp_path / 'out', time.monotonic()
    process = launch(str(path), output, '--time-limit', '40')
    text = process.communicate()[0]
    assert process.returncode == 3 and time.monotonic() - started < 60, text
    assert (output / 'relu,seed=0' / 'last.pth.tar').exists() and not (output / 'psilu,seed=0').exists()
    assert cell_state(output / 'relu,seed=0') == 'interrupted' and 'left' in text


def test_a_cell_repeats_its_row_and_the_last_row_is_that_of_the_last_checkpoint(tmp_path):
    sweep = read_sweep(grid_file(tmp_path, '- {activation: pssilu, fixed: {alpha: 2, beta: 0.2}, seed: [3]}'))
    for name in ('one', 'two'):
        run_cell(sweep.cells[0], tmp_path / name, device='cpu')
    rows = [[{k: v for k, v in row.items() if k not in TIMES} for row in sweep_rows(tmp_path / name)]
            for name in ('one', 'two')]
    assert rows[0] == rows[1]
    best, last = rows[0]
    assert (best['checkpoint'], last['checkpoint'], last['epoch']) == ('best', 'last', 1)
    assert (best['alpha'], best['beta']) == (2, pytest.approx(0.2))
    assert (best['given'], best['learned']) == ('alpha=2 beta=0.2', False)
    trainer = Trainer(sweep.cells[0].config(tmp_path / 'again', device='cpu'))  # the same run by hand
    trainer.fit()
    if best['epoch'] != 1:
        trainer.files.best.unlink()  # measures the weights as they are: the last ones
    assert trainer.evaluate().measurements['pgd'].accuracy.correct == last['pgd_correct']
    check_sweep(sweep, tmp_path / 'one')
    sweep.cells[0].settings['epochs'] = '3'
    with pytest.raises(ValueError, match='epochs'):
        check_sweep(sweep, tmp_path / 'one')


@pytest.mark.parametrize('argv, words', [
    (['-c', 'nowhere'], 'nowhere'), (['--workers', '0'], '--workers'), (['--time-limit', '-1'], '--time-limit'),
    (['--report-only', '--output', 'nowhere'], 'nowhere'), (['--worker', '2'], '--workers'),
])
def test_mistakes_end_with_status_2_and_one_line(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert shape_sweep.main(argv) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1 and list(tmp_path.iterdir()) == []


def test_a_dry_run_lists_the_cells_and_writes_nothing(tmp_path, capsys):
    config = grid_file(tmp_path, '- activation: [relu, psilu]')
    assert shape_sweep.main(['-c', config, '--output', str(tmp_path / 'out'), '--dry-run']) == 0
    text = capsys.readouterr().out
    assert 'relu,seed=0' in text and 'psilu,seed=0' in text and 'about' in text
    assert not (tmp_path / 'out').exists()


def test_threads_are_the_cores_that_the_process_may_use(tmp_path, monkeypatch):
    """As in a Slurm job; a worker that is not started shows what it would get."""
    class Started(Exception):
        pass

    class Context:
        def Process(self, target, args):
            raise Started(args[-1])

    monkeypatch.setattr('os.cpu_count', lambda: 64)
    monkeypatch.setattr('os.sched_getaffinity', lambda pid: {3, 5, 7, 9}, raising=False)
    monkeypatch.setattr('multiprocessing.get_context', lambda kind: Context())
    sweep = read_sweep(grid_file(tmp_path, '- activation: relu'))
    for workers, threads in ((1, 4), (2, 2), (8, 1)):
        with pytest.raises(Started) as started:
            run_sweep(sweep, tmp_path / 'out', workers=workers)
        assert started.value.args == (threads,)


def row(activation, seed, pgd, **options):
    learned = options.pop('learned', False)
    return {'activation': activation, 'learned': learned, 'given': '', 'seed': seed, **options, 'checkpoint': 'best',
            'pgd': pgd}


def test_differences_are_paired_by_seed_and_options():
    rows = [row('relu', 0, 40., task='a'), row('relu', 1, 42., task='a'), row('relu', 0, 10., task='b'),
            row('relu', 2, 99., task='a'), row('psilu', 0, 41., task='a', act_sharing='layer'),
            row('psilu', 1, 44., task='a', act_sharing='layer'), row('psilu', 0, 15., task='b')]
    groups = groups_of(rows)
    found = {group.label(): paired_differences(group, groups, 'relu', 'pgd') for group in groups}
    assert found['psilu, task a, act sharing layer'] == {0: 1., 1: 2.}
    assert found['psilu, task b'] == {0: 5.} and found['relu, task a'] == {}
    assert paired_differences(groups[0], groups, 'silu', 'pgd') == {}


def test_a_slurm_array_shares_the_cells_and_ends_before_its_time(tmp_path, monkeypatch):
    """With a stand-in for submitit, whose jobs are pickled and not run."""
    class Executor:
        def __init__(self, folder, cluster):
            self.folder = folder

        def update_parameters(self, **parameters):
            if 'partition' in parameters:
                raise NameError('partition is not a parameter')
            self.parameters = parameters

        batch = contextlib.nullcontext

        def submit(self, *job, **settings):
            jobs.append((*pickle.loads(pickle.dumps((job, settings))), self.parameters))
            return types.SimpleNamespace(job_id=f'7_{len(jobs)}')

    jobs = []
    monkeypatch.setitem(sys.modules, 'submitit', types.SimpleNamespace(AutoExecutor=Executor))
    sweep = read_sweep(grid_file(tmp_path, '- activation: [relu, psilu]'))
    given = {'timeout_min': 30, 'gpus_per_node': 1, 'array_size': 3}
    assert submit_sweep(sweep, tmp_path, given, workers=2) == ['7_1', '7_2', '7_3']
    for job, settings, parameters in jobs:
        assert job == (run_sweep, sweep, tmp_path) and parameters == {'timeout_min': 30, 'gpus_per_node': 1}
        assert (settings['workers'], settings['time_limit']) == (2, 29 * 60)
    with pytest.raises(ValueError, match='partition'):
        submit_sweep(sweep, tmp_path, {'partition': 'gpu'})
    monkeypatch.setitem(sys.modules, 'submitit', None)
    with pytest.raises(ValueError, match='pip install'):
        submit_sweep(sweep, tmp_path, given)
