"""Two processes with half the batch each, and one with all of it."""
import os

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from tests.tasks.conftest import small_network
from timm_paf.attacks import PGD
from timm_paf.tasks import TASKS, TaskOptions, create_task

UPDATES = 3


def train(name, x, y, *, distributed=False):
    """Weights after a few updates with everything on."""
    # without a random start the attack does not depend on how images are spread over processes
    attack = PGD(eps=0.1, steps=2, random_start=False, loss='ce')
    options = TaskOptions(awp_gamma=0.02, awp_start_update=1, eps_warmup_updates=2, smoothing=0.1)
    task = create_task(name, small_network(), attack, options=options)
    bare = task.trainable_module
    if distributed:
        task.prepare_distributed()
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9)
    task.attach_optimizer(optimizer)
    for update in range(UPDATES):
        task.begin_update(update)
        optimizer.zero_grad()
        task(x, y)['loss'].backward()
        optimizer.step()
    return bare.state_dict()


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    x, y = (t.chunk(2)[rank] for t in torch.load(folder / 'batch.pt'))
    torch.save({name: train(name, x, y, distributed=True) for name in TASKS}, folder / f'{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Weights by rank and task; all tasks in one pair of processes, since starting them is what takes long."""
    folder = tmp_path_factory.mktemp('ranks')
    generator = torch.Generator().manual_seed(2)
    batch = torch.rand(8, 1, 8, 8, generator=generator), torch.arange(8) % 4
    torch.save(batch, folder / 'batch.pt')
    os.environ['PYTHONWARNINGS'] = 'ignore'  # gloo and the launcher warn about themselves
    try:
        multiprocessing.spawn(process, (folder,), nprocs=2)
    finally:
        del os.environ['PYTHONWARNINGS']
    return batch, [torch.load(folder / f'{rank}.pt') for rank in range(2)]


@pytest.mark.parametrize('name', TASKS)
def test_two_processes_are_one_with_the_whole_batch(name, trained):
    batch, (first, second) = trained
    alone, start = train(name, *batch), small_network().state_dict()
    for key, value in alone.items():
        assert torch.equal(first[name][key], second[name][key])
        torch.testing.assert_close(first[name][key], value, rtol=1e-4, atol=1e-6)
        assert not torch.equal(value, start[key])
