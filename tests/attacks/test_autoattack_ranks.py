"""Several processes find what one finds, and leave together where one has an error."""
import socket

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from timm_paf.attacks import autoattack
from timm_paf.attacks.autoattack import _Run

SETTINGS = dict(eps=0.04, version='custom', attacks=['apgd-ce', 'apgd-dlr'], batch_size=4, seed=1)


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.SiLU(), nn.Linear(8, 5)).eval()
    x = torch.rand(26, 1, 6, 6)
    return model, x, model(x).argmax(1)


def work(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    shared = dict(rank=rank, world_size=2)
    model, x, y = problem()
    seen = []
    result = autoattack(
        model, x, y, **SETTINGS, **shared, state=folder / 'state', progress=lambda *args: seen.append(args))
    errors = []
    for arguments in (
            (model, x + 0.001 * rank - 0.001 * rank * x, y, dict(SETTINGS)),  # other images on one rank
            (model, x + 9 * rank, y, dict(SETTINGS)),  # images out of range on one rank
            (model, x, y, dict(SETTINGS, seed=7, state=folder / 'state')),  # the state of another run
    ):
        try:
            autoattack(*arguments[:3], **arguments[3], **shared)
        except ValueError as error:
            errors.append(str(error))
    torch.save({
        'robust': result.robust, 'x_adv': result.x_adv, 'broken_by': result.broken_by, 'errors': errors,
        'runs': [(run.name, run.attacked, run.broken, run.forwards) for run in result.runs],
        'images': {s[0]: s[2] for s in seen}}, folder / f'{rank}.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(work, (port, folder), nprocs=2, start_method='spawn')
    return folder, [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(2)]


def test_two_processes_find_what_one_finds(found):
    _, ranks = found
    whole = autoattack(*problem(), **SETTINGS)
    assert 0 < whole.robust.sum() < 26
    for rank in ranks:
        assert torch.equal(rank['robust'], whole.robust) and torch.equal(rank['x_adv'], whole.x_adv)
        assert rank['broken_by'] == whole.broken_by
        assert rank['runs'] == [(run.name, run.attacked, run.broken, run.forwards) for run in whole.runs]
    for run in whole.runs:  # each did its share
        shares = [rank['images'][run.name] for rank in ranks]
        assert sum(shares) == run.attacked and all(shares)


def test_one_process_reads_the_state_of_two(found, monkeypatch):
    folder, ranks = found
    monkeypatch.setattr(_Run, '_attack', None)  # would be called for a batch still to do
    again = autoattack(*problem(), **SETTINGS, state=folder / 'state')
    assert torch.equal(again.robust, ranks[0]['robust']) and torch.equal(again.x_adv, ranks[0]['x_adv'])


def test_all_leave_where_one_has_an_error(found):
    _, ranks = found
    for rank in ranks:
        assert len(rank['errors']) == 3
        assert 'ranks differ' in rank['errors'][0]
        assert 'expected [0, 1]' in rank['errors'][1]
        assert 'seed 1 instead of 7' in rank['errors'][2]
    assert ranks[0]['errors'][1].startswith('rank 1: ')
