"""Where images wait and how batches arrive: sets kept on the device, batches made ahead of time, waiting measured."""

import dataclasses
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from timm_paf.data.arrays import ImageSource, LabelledImages
from timm_paf.data.mixing import Batch

_CHUNK_BYTES = 2**26  # read at a time when a set is brought to the device
_POLL_SECONDS = 0.1  # how often a waiting thread looks whether it is still wanted


def stored_bytes(source: ImageSource) -> int:
    """How many bytes the images and labels of a source take in memory; reads one image."""
    images, labels = source.take(torch.zeros(1, dtype=torch.int64))
    return len(source) * (images.nbytes + labels.nbytes)


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or of this machine if the device is no GPU."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def place_on_device(
    sources: Sequence[ImageSource], device: torch.device, *, budget: int, required: bool = False,
) -> list[ImageSource]:
    """Bring sets of images to a device as long as they fit into a budget; the rest stays where it is.

    Each set is placed whole or not at all, in the order given. On the CPU, sets that are in memory count as placed, and
    the others are read into it only if `required`: the system keeps in memory what is read often. Sources that decode
    images while training (`prefetch`) can't be placed.

    Args:
        sources: the sets.
        device: where batches go.
        budget: bytes that the placed sets may take together.
        required: refuse to leave a set behind.

    Returns:
        The sources, the placed ones as `LabelledImages` on the device.

    Raises:
        ValueError: if `required` and a set does not fit or can't be placed.
    """
    placed: list[ImageSource] = []
    left = budget
    for source in sources:
        if isinstance(source, LabelledImages) and source.images.device.type == device.type:
            placed.append(source)
            continue
        if hasattr(source, 'prefetch'):
            if required:
                raise ValueError(f'{source.name}: images that are decoded while training cannot stay on the device')
            placed.append(source)
            continue
        needed = stored_bytes(source)
        if needed > left and required:
            raise ValueError(
                f'{source.name}: needs {needed / 2**30:.2f} GiB on {device}, {left / 2**30:.2f} GiB are left of the '
                f'budget; raise the budget, or leave data where they are'
            )
        if needed <= left and (required or device.type != 'cpu'):
            source, left = _read_whole(source, device), left - needed
        placed.append(source)
    return placed


class Prefetched:
    """Batches of an iterator, made in the background while the caller works; used as a context.

    On a GPU a thread makes the next batches on a stream of its own, so that reading, copying and augmenting run beside
    the training step. Without a thread batches are made when they are asked for. The batches are the same either way.

    Args:
        batches: where they come from.
        device: where their tensors are.
        threaded: use a thread; by default if the device is a GPU.
        depth: how many batches may wait, at least 1.
    """

    def __init__(
        self, batches: Iterator[Batch], *, device: torch.device, threaded: bool | None = None, depth: int = 2,
    ) -> None:
        if depth < 1:
            raise ValueError(f'got depth={depth}, expected at least 1')
        self.waited = 0.
        """Seconds that the caller has stood in `next`, so far."""
        self._batches = batches
        self._device = device
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if device.type == 'cuda' if threaded is None else threaded:
            self._thread = threading.Thread(target=self._work, name='batches', daemon=True)
            self._thread.start()

    def __enter__(self) -> 'Prefetched':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; batches that wait are dropped."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if hasattr(self._batches, 'close'):
            self._batches.close()  # worker processes of a loader end now and not some time later

    def __iter__(self) -> Iterator[Batch]:
        """Itself."""
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            return next(self._batches) if self._thread is None else self._receive()
        finally:
            self.waited += time.perf_counter() - started

    def _receive(self) -> Batch:
        if self._stop.is_set():
            raise StopIteration
        kind, content = self._ready.get()
        if kind != 'batch':
            self._stop.set()
            raise StopIteration if kind == 'end' else content
        batch, event = content
        if event is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(event)
            for tensor in _tensors(batch):
                tensor.record_stream(stream)  # its memory is not used again before this stream is done with it
        return batch

    def _work(self) -> None:
        try:
            if self._device.type == 'cuda':
                stream = torch.cuda.Stream(self._device)
                with torch.cuda.device(self._device), torch.cuda.stream(stream):
                    for batch in self._batches:
                        if not self._send('batch', (batch, stream.record_event())):
                            return
            else:
                for batch in self._batches:
                    if not self._send('batch', (batch, None)):
                        return
            self._send('end', None)
        except BaseException as error:  # whatever it is, it belongs to the caller
            self._send('error', error)

    def _send(self, kind: str, content: Any) -> bool:
        """Whether it could be handed over before the caller lost interest."""
        while not self._stop.is_set():
            try:
                self._ready.put((kind, content), timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False


def _tensors(batch: Batch) -> list[Tensor]:
    values = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    return [value for value in values if isinstance(value, Tensor)]


def _read_whole(source: ImageSource, device: torch.device) -> LabelledImages:
    first, first_labels = source.take(torch.zeros(1, dtype=torch.int64))
    images = torch.empty((len(source), *source.image_shape), dtype=first.dtype, device=device)
    labels = torch.empty((len(source), *first_labels.shape[1:]), dtype=first_labels.dtype, device=device)
    for indices in torch.arange(len(source)).split(max(1, _CHUNK_BYTES // first.nbytes)):
        some = slice(int(indices[0]), int(indices[-1]) + 1)
        images[some], labels[some] = source.take(indices)
    return LabelledImages(images, labels, source.num_classes, source.name)
