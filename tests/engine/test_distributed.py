"""Training in several processes, as torchrun starts them."""
import json
import os
import random
import signal
import socket
import time

import pytest
import torch
from tiny_run import FAST, assert_same_result, ended, launch, rows_of, wait_for, weights_of

from timm_paf.engine import train as train_command
from timm_paf.engine.distributed import StopSignals


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture
def together():
    """Starts two processes of one run; none is left behind."""
    started = []

    def start(folder, *argv):
        port = free_port()
        processes = [
            launch('--output', str(folder), '--experiment', 'run', *argv, rank=rank, port=port) for rank in (0, 1)]
        started.extend(processes)
        return processes

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_processes_are_one_up_to_the_order_of_sums(tmp_path, together):
    """A batch of 33 images, so that the shares differ in size; pieces of 9, 8 and 8, 8; no BatchNorm."""
    flags = ['--model', 'tiny_smooth', '--no-attack-random-start', '--batch-size', '33', '--grad-accum-steps', '2',
             '--model-ema', '--smoothing', '0.1', '--epochs', '3']
    processes = together(tmp_path, *flags)
    (output, error), (quiet, _) = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], error
    assert 'on cpu, 2 processes' in output and quiet == ''
    arguments = [*FAST, *flags, '--output', str(tmp_path), '--experiment', 'alone']
    assert train_command(arguments) == 0
    for key in ('state_dict', 'state_dict_ema'):
        one, two = (weights_of(tmp_path / name / 'last.pth.tar', key) for name in ('alone', 'run'))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
    for alone, both in zip(*(rows_of(tmp_path / name) for name in ('alone', 'run')), strict=True):
        assert float(both['train_loss']) == pytest.approx(float(alone['train_loss']), rel=1e-4)
        for column in ('train_robust', 'eval_clean', 'eval_clean_raw'):
            assert float(both[column]) == pytest.approx(float(alone[column]), abs=1.2)  # two images of 180
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert report['clean']['total'] == 360


def test_process_that_dies_ends_the_run(tmp_path, together):
    """With a message, the checkpoints kept, and no hang."""
    processes = together(tmp_path, '--model', 'tiny_norm', '--epochs', '1000')
    wait_for(processes[0], '   2/1000 ')
    processes[1].kill()
    killed = time.monotonic()
    (_, error), _ = ended(processes)
    assert time.monotonic() - killed < 60 and processes[0].returncode == 1
    last = error.strip().splitlines()[-1]
    assert last.startswith('stopped: process 0 of 2 has lost contact with another')
    assert '--resume auto' in last and 'Traceback' not in error
    assert torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=True)['epoch'] >= 1


@pytest.mark.slow
def test_mistakes_end_all_processes(tmp_path, together):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'notes').write_text('precious')
    processes = together(tmp_path, '--model', 'tiny_norm')
    for _, error in ended(processes):
        assert error.count('error: ') == 1 and 'is not empty' in error and 'Traceback' not in error
    assert [process.returncode for process in processes] == [2, 2]


TWO = ['--model', 'tiny_norm', '--model-ema', '--epochs', '4', '--updates-per-epoch', '50', '--checkpoint-minutes',
       '0.001', '--resume', 'auto']


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM], ids=['SIGKILL', 'SIGTERM'])
@pytest.mark.parametrize('mode', ['reduce', 'broadcast', 'none'])
def test_two_processes_go_on_exactly(tmp_path, together, mode, number):
    """With BatchNorm statistics and random numbers that are each process's own."""
    results = []
    for name in ('whole', 'killed'):
        folder = tmp_path / name
        folder.mkdir()
        if name == 'killed':
            processes = together(folder, *TWO, '--dist-bn', mode)
            wait_for(processes[0], ' 1/4 ')
            time.sleep(random.Random(number).uniform(0.1, 0.6))
            for process in processes:
                process.send_signal(number)
            ended(processes)
            expected = 3 if number == signal.SIGTERM else -number
            assert [process.returncode for process in processes] == [expected] * 2
        processes = together(folder, *TWO, '--dist-bn', mode)
        outputs = ended(processes)
        assert [process.returncode for process in processes] == [0, 0], outputs
        results.append(folder / 'run')
    assert_same_result(*results)


@pytest.mark.parametrize('enabled', [True, False])
def test_a_signal_between_training_and_measurement_is_noted(enabled):
    found, default = [], signal.signal(signal.SIGTERM, lambda *_: found.append('other'))
    try:
        stop = StopSignals(enabled=enabled)
        with stop:
            with stop:
                pass
            os.kill(os.getpid(), signal.SIGTERM)
            assert (stop.received == signal.SIGTERM) is enabled
        os.kill(os.getpid(), signal.SIGTERM)  # the handlers of before are back
        assert found == ['other'] * (1 if enabled else 2)
    finally:
        signal.signal(signal.SIGTERM, default)
