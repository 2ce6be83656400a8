"""A shared activation in two processes: equal on both, and equal to one process with the whole batch."""

import pytest
import timm
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.nn import functional as F

from timm_paf import paf_parameters, shared

NETWORKS = {
    'ours': lambda: timm.create_model('wrn10_2_pssilu', in_chans=1),
    'stock': lambda: timm.create_model('test_resnet', act_layer=shared('pssilu'), in_chans=1, num_classes=10),
}


def network(name, checkpointing=False):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()  # BatchNorm by its running statistics, which do not depend on the batch
    model.set_grad_checkpointing(checkpointing)
    return model


def steps(model, x, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 1, 16, 16, generator=generator), torch.arange(8)


def data_parallel(rank, folder, name, checkpointing):
    model = network(name, checkpointing)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    x, y = (t.chunk(2)[rank] for t in batch())
    steps(wrapped, x, y)
    torch.save({key: p.detach() for key, p in paf_parameters(model).items()}, folder / f'{rank}.pt')


def fully_sharded(rank, folder, name, checkpointing):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard
    model = fully_shard(network(name, checkpointing))
    x, y = (t.chunk(2)[rank] for t in batch())
    steps(model, x, y)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save(state, folder / 'state.pt')


WORK = {
    'ours': (data_parallel, 'ours', False), 'ours, checkpointing': (data_parallel, 'ours', True),
    'stock, checkpointing': (data_parallel, 'stock', True)}
if torch.__version__ >= '2.7':  # torch 2.6 shards on GPUs only
    WORK['sharded'] = (fully_sharded, 'ours', False)


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    for case, (work, *arguments) in WORK.items():
        (folder / case).mkdir(exist_ok=True)
        work(rank, folder / case, *arguments)
        dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Results of all cases from one pair of processes."""
    folder = tmp_path_factory.mktemp('two')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONWARNINGS', 'ignore')  # gloo and the launcher warn about themselves
        multiprocessing.spawn(process, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize('case', [case for case, (work, *_) in WORK.items() if work is data_parallel])
def test_data_parallel_keeps_it_equal(case, folder):
    name = WORK[case][1]
    first, second = (torch.load(folder / case / f'{rank}.pt', weights_only=True) for rank in range(2))
    alone, start = network(name), paf_parameters(network(name))
    steps(alone, *batch())
    for key, parameter in paf_parameters(alone).items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], parameter.detach(), rtol=1e-5, atol=1e-6)
        assert not torch.equal(parameter, start[key])  # it moved


@pytest.mark.skipif('sharded' not in WORK, reason='torch 2.6 shards on GPUs only')
def test_sharded_network(folder):
    state = torch.load(folder / 'sharded' / 'state.pt', weights_only=True)
    alone = network('ours')
    steps(alone, *batch())
    assert list(state) == list(alone.state_dict())
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6)
