"""Sets kept on the device, and batches made ahead of time."""

import threading
import time
from itertools import count, islice

import pytest
import torch

from timm_paf.data import Augment, LabelledImages, MixedBatches, Prefetched, place_on_device
from timm_paf.data.loading import stored_bytes

CPU = torch.device('cpu')


class OnDisk:
    """A source that has to be asked for its images; it notes what was asked."""

    name, num_classes, image_shape = 'disk', 5, (3, 4, 4)

    def __init__(self, count=50, *, soft=False):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
        self.labels = torch.arange(count) % 5
        if soft:
            self.labels = torch.nn.functional.one_hot(self.labels, 5).float()
        self.asked = 0

    def __len__(self):
        return len(self.images)

    def take(self, indices):
        self.asked += len(indices)
        return self.images[indices], self.labels[indices]


@pytest.mark.parametrize('soft', [False, True])
def test_placed_set_is_the_same_set(soft, monkeypatch):
    monkeypatch.setattr('timm_paf.data.loading._CHUNK_BYTES', 48 * 7)  # seven images at a time: the last chunk is short
    source = OnDisk(soft=soft)
    assert stored_bytes(source) == 50 * (48 + (20 if soft else 8))
    (placed,) = place_on_device([source], CPU, budget=stored_bytes(source), required=True)
    assert isinstance(placed, LabelledImages) and placed.name == 'disk'
    assert torch.equal(placed.images, source.images) and torch.equal(placed.labels, source.labels)
    source.asked = 0
    assert place_on_device([placed, source], CPU, budget=10**9) == [placed, source] and source.asked <= 1
    with pytest.raises(ValueError, match=r'disk: its images need 0\.00 GiB on cpu, but 0\.00 GiB of the memory budget'):
        place_on_device([source, OnDisk(20)], CPU, budget=stored_bytes(source) + 19 * 48, required=True)


@pytest.mark.gpu
def test_sets_go_to_the_gpu_as_far_as_the_budget_goes():
    device, in_memory = torch.device('cuda'), LabelledImages(OnDisk().images, OnDisk().labels, 5, 'memory')
    sources = [in_memory, OnDisk(100), OnDisk(20)]
    placed = place_on_device(sources, device, budget=stored_bytes(sources[0]) + stored_bytes(sources[2]))
    assert placed[0].images.is_cuda and placed[1] is sources[1] and placed[2].images.is_cuda
    assert torch.equal(placed[0].images.cpu(), in_memory.images)
    settings = {'batch_size': 16, 'synthetic_fraction': 0.5, 'seed': 0, 'real_augment': Augment(crop_padding=1)}
    here, there = MixedBatches(*sources[:2], **settings), MixedBatches(*placed[:2], **settings, device=device)
    for one, other in zip(here.epoch(0), there.epoch(0), strict=True):
        assert torch.equal(one.x, other.x.cpu()) and torch.equal(one.target, other.target.cpu())


def batches():
    real, synthetic = OnDisk(50), OnDisk(70)
    return MixedBatches(
        real, synthetic, batch_size=8, synthetic_fraction=0.5, seed=0, real_augment=Augment(crop_padding=1))


@pytest.mark.parametrize(('threaded', 'depth'), [(False, 1), (True, 1), (True, 5)])
def test_prefetched_batches_are_the_same_batches(threaded, depth):
    with Prefetched(batches().epoch(2, 3), device=CPU, threaded=threaded, depth=depth) as ahead:
        got = list(ahead)
        assert next(ahead, None) is None
    assert len(got) == 10
    for one, other in zip(got, batches().epoch(2, 3), strict=True):
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


@pytest.mark.parametrize('threaded', [False, True])
def test_errors_of_the_source_reach_the_caller(threaded):
    def failing():
        yield from islice(batches().epoch(0), 2)
        raise RuntimeError('the disk is gone')

    with Prefetched(failing(), device=CPU, threaded=threaded) as ahead:
        next(ahead), next(ahead)
        with pytest.raises(RuntimeError, match='the disk is gone'):
            next(ahead)
        with pytest.raises(StopIteration):
            next(ahead)


def test_leaving_ends_the_thread():
    made = []

    def endless():
        for number in count():
            made.append(number)
            yield number

    with Prefetched(endless(), device=CPU, threaded=True, depth=3) as ahead:
        next(ahead)
    assert not any(thread.name.startswith('batches') for thread in threading.enumerate())
    assert len(made) <= 1 + 3 + 1  # taken, waiting, and in the thread's hand


def test_waiting_is_measured():
    def slow(number, seconds):
        for item in range(number):
            time.sleep(seconds)
            yield item

    with Prefetched(slow(4, 0.05), device=CPU, threaded=False) as here:
        list(here)
    assert here.waited >= 0.2
    # while the caller works longer than a batch takes, only the first one is waited for
    started = time.perf_counter()
    with Prefetched(slow(5, 0.02), device=CPU, threaded=True) as ahead:
        for _ in ahead:
            time.sleep(0.1)
    assert 0 < ahead.waited < 0.5 * (time.perf_counter() - started)
