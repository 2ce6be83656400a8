"""Data sets kept on the device, and batches prefetched in the background."""

import contextlib
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from timm_paf.data.arrays import ImageSource, LabelledImages
from timm_paf.data.classes import class_names
from timm_paf.data.mixing import Batch

_CHUNK_BYTES = 2**26  # read at a time when a data set is copied to the device


def stored_bytes(source: ImageSource) -> int:
    """Return the size in bytes of the images and labels of a source in memory; reads one image."""
    images, labels = source.take(torch.zeros(1, dtype=torch.int64))
    return len(source) * (images.nbytes + labels.nbytes)


def free_bytes(device: torch.device) -> int:
    """Return the free memory in bytes of a GPU, or of this machine if the device is not a GPU."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r'MemAvailable:\s+(\d+) kB', Path('/proc/meminfo').read_text())  # with what caches can give
    except OSError:
        found = None
    return 1024 * int(found[1]) if found else os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def place_on_device(
    sources: Sequence[ImageSource], device: torch.device, *, budget: int, required: bool = False,
) -> list[ImageSource]:
    """Copy data sets to a device, as many as fit into a budget.

    Each set is copied as a whole or not at all, in the given order. On the CPU, sets are read into memory only if
    `required`, because the system caches files itself. Sources that crop images at random, and streams, are not copied.

    Args:
        sources: Data sets.
        device: Device of the batches.
        budget: Bytes that the copied sets may take in total.
        required: Raise ValueError if a set does not fit or cannot be copied.

    Returns:
        The sources, with `LabelledImages` on the device in place of the copied ones.
    """
    placed = list(sources)
    for position, source in enumerate(sources):
        if isinstance(source, LabelledImages) and source.images.device.type == device.type:
            continue
        decoded = hasattr(source, 'prefetch') and getattr(source, 'changes_images', True)
        if required and decoded:
            raise ValueError(
                f'{source.name}: images that are cropped at random, or come from a stream, cannot be kept in memory')
        if decoded or (device.type == 'cpu' and not required):
            continue
        needed = stored_bytes(source)
        if needed <= budget:
            placed[position], budget = _read_whole(source, device), budget - needed
        elif required:
            raise ValueError(
                f'{source.name}: its images need {needed / 2**30:.2f} GiB on {device}, but {budget / 2**30:.2f} '
                f'GiB of the memory budget are left; raise the budget, keep the images in main memory, or use fewer.')
    return placed


class Prefetched:
    """Prefetches the batches of an iterator in the background; used as a context manager.

    On a GPU a thread makes the next batches on a CUDA stream of its own, so that reading, copying and augmentation
    overlap with the training step. Without a thread, each batch is made on request.

    Args:
        batches: Iterator over batches.
        device: Device of their tensors.
        threaded: Use a thread; None for a thread if the device is a GPU.
        depth: Number of batches made in advance, at least 1.
    """

    def __init__(
        self, batches: Iterator[Batch], *, device: torch.device, threaded: bool | None = None, depth: int = 2,
    ) -> None:
        if depth < 1:
            raise ValueError(f'got depth={depth}, expected at least 1')
        self.waited = 0.
        """Seconds that the caller has waited in `next`, so far."""
        self._batches = batches
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == 'cuda' else None
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: deque[Future[tuple[Batch, torch.cuda.Event | None]]] = deque()
        if device.type == 'cuda' if threaded is None else threaded:
            self._thread = ThreadPoolExecutor(1, 'batches')
            self._ahead.extend(self._thread.submit(self._make) for _ in range(depth))

    def __enter__(self) -> 'Prefetched':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and drop the batches made in advance."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._ahead.clear()
        if hasattr(self._batches, 'close'):
            self._batches.close()  # ends the worker processes of a loader now, not at garbage collection

    def __iter__(self) -> Iterator[Batch]:
        """Return itself."""
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            if self._thread is None:
                return next(self._batches)
            self._ahead.append(self._thread.submit(self._make))
            batch, event = self._ahead.popleft().result()  # or raises the error or the end of the iterator
        finally:
            self.waited += time.perf_counter() - started
        if event is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(event)
            for value in vars(batch).values():
                if isinstance(value, Tensor):
                    value.record_stream(stream)  # keeps its memory until this stream has used it
        return batch

    def _make(self) -> tuple[Batch, torch.cuda.Event | None]:
        with torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            batch = next(self._batches)
            return batch, self._stream.record_event() if self._stream else None


def _read_whole(source: ImageSource, device: torch.device) -> LabelledImages:
    first, first_labels = source.take(torch.zeros(1, dtype=torch.int64))
    images = torch.empty((len(source), *source.image_shape), dtype=first.dtype, device=device)
    labels = torch.empty((len(source), *first_labels.shape[1:]), dtype=first_labels.dtype, device=device)
    for indices in torch.arange(len(source)).split(max(1, _CHUNK_BYTES // first.nbytes)):
        some = slice(int(indices[0]), int(indices[-1]) + 1)
        images[some], labels[some] = source.take(indices)
    return LabelledImages(images, labels, source.num_classes, source.name, class_names(source))
