"""What only a GPU can show: memory, failed recordings, other threads, and random numbers next to graphs."""
import gc
import threading

import pytest
import torch
from torch import nn

from timm_paf.attacks import PGD, release_graphs

pytestmark = pytest.mark.gpu


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


def test_memory_is_freed(attacked):
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        attacked()
        release_graphs()
        gc.collect()
        torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**25


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


def test_graphs_of_two_models_share_the_pool_and_no_result(attacked):
    (first, _), (second, _) = attacked(seed=0), attacked(nn.BatchNorm2d(8), seed=1)
    for x_adv, parts, seed in ((first, (), 0), (second, (nn.BatchNorm2d(8),), 1)):
        assert torch.equal(x_adv, attacked(*parts, seed=seed, capture='none')[0])
