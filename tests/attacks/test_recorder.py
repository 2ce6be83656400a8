"""Recordings: their order and what a failed one leaves, with stand-ins for torch's graphs, and on a GPU with graphs."""
import contextlib
import gc
import threading

import pytest
import torch
from torch import nn

from timm_paf.attacks import PGD, release_graphs
from timm_paf.attacks.recorder import CudaRecorder


@pytest.fixture
def recordings(monkeypatch):
    """Pools of the recordings that begin, and of those that a failure has left open, on a CPU."""
    begun, closed, pools = [], [], iter(range(100))

    class Stream:
        device = torch.device('cpu')

        def wait_stream(self, other):
            pass

    @contextlib.contextmanager
    def graph(graph, *, pool=None, stream, capture_error_mode):
        assert capture_error_mode == 'thread_local'  # other threads may use the device
        begun.append(pool)
        yield

    monkeypatch.setattr(torch.cuda, 'Stream', lambda device: Stream())
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: Stream())
    monkeypatch.setattr(torch.cuda, 'stream', contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, 'graph_pool_handle', lambda: next(pools))
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', nn.Identity)
    monkeypatch.setattr(nn.Identity, 'replay', None, raising=False)
    monkeypatch.setattr(torch.cuda, 'graph', graph)
    monkeypatch.setattr(
        torch._C, '_cuda_endAllocateToPool', lambda device, pool: closed.append(pool), raising=False)
    return begun, closed


def test_functions_warm_up_and_share_a_pool(recordings):
    recorder, calls = CudaRecorder(torch.device('cpu')), []
    for _ in range(2):
        results, _ = recorder.record(lambda: calls.append(0) or (torch.ones(2),))
        assert torch.equal(results[0], torch.ones(2))
    assert len(calls) == 2 * 3 and recordings == ([0, 0], [])


def test_gradients_are_recorded_in_a_pool_of_their_own(recordings):
    x = torch.tensor([1., 2.], requires_grad=True)
    (results, slope, found), _, _ = CudaRecorder(torch.device('cpu')).record_gradient(lambda x: x**2, x)
    assert torch.equal(found, 2 * x.detach() * slope) and not results.requires_grad
    assert recordings == ([1, 1], [])


def test_a_failed_recording_is_closed_and_the_next_one_has_a_new_pool(recordings):
    begun, closed = recordings
    recorder = CudaRecorder(torch.device('cpu'))

    def fails():
        if begun:
            raise RuntimeError('not permitted')
        return (torch.ones(1),)

    with pytest.raises(RuntimeError, match='not permitted'):
        recorder.record(fails)
    assert begun == [0, None] and closed == [0]  # the second recording resets the generator of random numbers
    recorder.record(lambda: (torch.ones(1),))
    assert begun[2:] == [1]


class Waiting(nn.Module):
    """Waits for the device, which cannot be recorded."""

    def forward(self, x):
        return x * float(x.sum() * 0 + 1)


@pytest.fixture
def attacked():
    """Attack a network on the GPU; parts after the convolution may be given."""
    def attack(*parts, n=12, capture='auto', seed=0):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), *parts, nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).cuda().eval()
        x, y = torch.rand(n, 3, 8, 8, device='cuda'), torch.randint(5, (n,), device='cuda')
        x_adv = PGD(eps=0.1, steps=3, random_start=False, capture=capture)(model, x, y)
        return x_adv, model
    yield attack
    release_graphs()


@pytest.mark.gpu
def test_memory_is_freed(attacked):
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        attacked()
        release_graphs()
        gc.collect()
        torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**25


@pytest.mark.gpu
def test_a_failed_recording_leaves_the_device_usable(attacked):
    """Torch keeps generator and memory pool in the state of a recording, and dropout in training would fail."""
    with pytest.warns(RuntimeWarning, match='Sequential'):
        failed, _ = attacked(Waiting())
    assert torch.equal(failed, attacked(Waiting(), capture='none')[0])
    nn.functional.dropout(torch.ones(9, device='cuda'))
    assert torch.equal(attacked(seed=1)[0], attacked(seed=1, capture='none')[0])
    reserved = torch.cuda.memory_reserved()
    side = torch.cuda.Stream()
    for _ in range(20):  # blocks used on another stream are free again, unless a recording seems to be under way
        block = torch.empty(2**24, device='cuda')
        block.record_stream(side)
        del block
        torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() <= reserved + 2**28


@pytest.mark.gpu
def test_another_thread_may_use_the_device_during_a_recording(attacked):
    generator, stop, errors = torch.Generator('cuda').manual_seed(0), threading.Event(), []

    def load():
        try:
            while not stop.is_set():
                torch.rand(1000, generator=generator, device='cuda').sum().item()
                torch.empty(1000).pin_memory().cuda(non_blocking=True)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for seed in range(5):
            attacked(seed=seed)
    finally:
        stop.set()
        thread.join()
    assert not errors


@pytest.mark.gpu
def test_graphs_of_two_models_share_the_pool_and_no_result(attacked):
    (first, _), (second, _) = attacked(seed=0), attacked(nn.BatchNorm2d(8), seed=1)
    for x_adv, parts, seed in ((first, (), 0), (second, (nn.BatchNorm2d(8),), 1)):
        assert torch.equal(x_adv, attacked(*parts, seed=seed, capture='none')[0])
