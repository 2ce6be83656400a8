"""Training on several nodes: here two torchruns on one machine, each with an output folder of its own."""
import os
import signal
import subprocess
import sys

import pytest
import timm
import tiny_run
import torch
from test_distributed import free_port
from tiny_run import FAST, RECIPES, assert_same_result, ended, wait_for

from timm_paf.engine.distributed import StopSignals, signal_name

ARGV = ['--model', 'tiny_norm', '--model-ema', '--experiment', 'run']
LONG = ['--epochs', '4', '--updates-per-epoch', '50', '--checkpoint-minutes', '0.001', '--resume', 'auto']


def torchrun(*argv):
    """One agent of torchrun, with everything that it starts in a group of its own."""
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(RECIPES.parent), *sys.path]))
    return subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', *argv], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.fixture
def nodes():
    """Starts two nodes with a process each; nothing of them is left behind."""
    started = []

    def start(folder, *argv, script=tiny_run.__file__, settings=(*FAST, *ARGV)):
        port = free_port()
        agents = [
            torchrun(
                '--nnodes', '2', '--node-rank', str(rank), '--nproc-per-node', '1', '--master-addr', '127.0.0.1',
                '--master-port', str(port), str(script), *settings, '--output', str(folder / str(rank)), *argv)
            for rank in (0, 1)]
        started.extend(agents)
        return agents

    yield start
    for agent in started:
        try:
            os.killpg(agent.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        agent.communicate()


def test_the_end_of_torchrun_counts_as_a_signal(monkeypatch):
    monkeypatch.setattr('timm_paf.engine.distributed.AGENT', os.getppid())
    stop = StopSignals()
    assert not stop.received
    monkeypatch.setattr('timm_paf.engine.distributed.AGENT', os.getppid() + 1)
    assert signal_name(stop.received) == 'the end of torchrun on one of the nodes'
    monkeypatch.setattr('timm_paf.engine.distributed.AGENT', None)
    assert not StopSignals().received


@pytest.mark.slow
def test_two_nodes_are_one_with_two_processes(tmp_path, nodes):
    """Bit for bit, and the second node writes nothing."""
    results = ended(nodes(tmp_path))
    assert (tmp_path / '0' / 'run' / 'report.json').exists() and not (tmp_path / '1').exists(), results
    assert 'on cpu, 2 processes' in results[0][0] and 'epoch' not in results[1][0]
    ended([torchrun(
        '--standalone', '--nproc-per-node', '2', tiny_run.__file__, *FAST, *ARGV, '--output', str(tmp_path / 'one'))])
    assert_same_result(tmp_path / '0' / 'run', tmp_path / 'one' / 'run')


@pytest.mark.slow
@pytest.mark.parametrize('killed', [0, 1], ids=['first', 'second'])
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM], ids=['SIGKILL', 'SIGTERM'])
def test_killed_torchrun_ends_both_nodes_and_the_run_goes_on(tmp_path, nodes, number, killed):
    """With a message and a checkpoint; then without files of the first node on the second, and with those of another
    run there."""
    agents = nodes(tmp_path, *LONG)
    wait_for(agents[0], ' 1/4 ')
    agents[killed].send_signal(number)
    results = ended(agents)  # the pipes are closed once the processes behind them have ended, too
    said = results[0][1]
    what = 'the end of torchrun on one of the nodes' if number == signal.SIGKILL else 'SIGTERM'
    assert said.count(f'interrupted: {what} at update ') == 1 and 'interrupted' not in results[1][1]
    assert not (tmp_path / '0' / 'run' / 'report.json').exists()
    (tmp_path / '1' / 'run').mkdir(parents=True)
    (tmp_path / '1' / 'run' / 'last.pth.tar').write_text('of another run')
    results = ended(nodes(tmp_path, *LONG))
    assert 'resuming from' in results[0][0] and 'finished' not in results[0][0], results
    ended([torchrun(
        '--standalone', '--nproc-per-node', '2', tiny_run.__file__, *FAST, *ARGV, *LONG, '--output',
        str(tmp_path / 'whole'))])
    assert_same_result(tmp_path / 'whole' / 'run', tmp_path / '0' / 'run')
    assert (tmp_path / '1' / 'run' / 'last.pth.tar').read_text() == 'of another run'


@pytest.mark.slow
def test_measuring_on_nodes_wants_one_folder(tmp_path, nodes):
    checkpoint = tmp_path / 'weights.pth.tar'
    torch.save({
        'state_dict': timm.create_model('wrn10_2_relu', in_chans=1).state_dict(),
        'args': {'model': 'wrn10_2_relu', 'dataset': 'digits', 'eps': '0.1'}}, checkpoint)
    for rank in '01':
        (tmp_path / rank).mkdir()
    settings = ['--checkpoint', str(checkpoint), '--device', 'cpu', '--no-trust']
    results = ended(nodes(tmp_path, script=RECIPES / 'adv_validate.py', settings=settings))
    for _, error in results:
        assert error.count('not all nodes see this folder') == 1
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['0', '1', 'weights.pth.tar']
