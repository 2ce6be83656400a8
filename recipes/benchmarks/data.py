"""Cost of feeding images, from an archive of millions to the batch, compared with torch's DataLoader and with training.

    python recipes/benchmarks/data.py --archive output/2m.npz --json output/data.json

If the archive does not exist, it is made: --images images of 32x32 in 10 classes, stored uncompressed and sorted by
class as in the EDM archives (6 GB for 2 million). Each measure runs in a process of its own, once per round. All
readers give batches (B, 3, 32, 32) float32 in [0, 1], shifted by up to 4 pixels and mirrored at random, in random
order. The archive is removed from the page cache before its first batch is timed. Before anything is timed, the images
and labels that are read must be those of the archive, and batches augmented on --device must equal those augmented on
the CPU.

The other readers are a DataLoader over

- memmap: images mapped in place, one at a time, with torchvision's transforms; the best way that does not load them;
- loaded: arrays of `numpy.load`, as in published training code, with the whole archive in memory;
- folder: torchvision's ImageFolder over PNG files of --folder-images images.
"""
import argparse
import multiprocessing
import os
import resource
import statistics
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from _timing import Table, new_parser, peak_bytes, ratios, run, seconds
from PIL import Image
from torch import Tensor
from torchvision import datasets, transforms

from timm_paf.attacks import PGD
from timm_paf.data import Augment, MixedBatches, Prefetched, open_archive
from timm_paf.tasks import AdversarialTrainingTask

SIDE, CLASSES, CHUNK = 32, 10, 20_000
Values = dict[tuple[str, str], float]  # name and unit -> value
OURS, RATE = 'timm_paf, archive', 'batches/s'


def make_archive(path: Path, count: int) -> None:
    """Write smooth images with noise, sorted by class, without holding them in memory."""
    generator = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix('.part')
    with zipfile.ZipFile(part, 'w', zipfile.ZIP_STORED) as archive:
        with archive.open('image.npy', 'w', force_zip64=True) as file:
            header = {'descr': '|u1', 'fortran_order': False, 'shape': (count, SIDE, SIDE, 3)}
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
            for start in range(0, count, CHUNK):
                coarse = generator.integers(40, 200, (min(CHUNK, count - start), 4, 4, 3), dtype=np.uint8)
                images = coarse.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
                file.write((images + generator.integers(0, 24, images.shape, dtype=np.uint8)).tobytes())
        with archive.open('label.npy', 'w') as file:
            np.lib.format.write_array(file, np.arange(count) * CLASSES // count)  # type: ignore[arg-type]
    part.replace(path)


def mapped(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images of a stored archive, mapped in place, and its labels."""
    with np.load(path) as arrays, zipfile.ZipFile(path) as archive, open(path, 'rb') as file:
        file.seek(archive.getinfo('image.npy').header_offset + 26)
        file.seek(sum(struct.unpack('<HH', file.read(4))), os.SEEK_CUR)  # name and extra field
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(path, dtype, 'r', file.tell(), shape), arrays['label']


def make_folder(source: Path, root: Path, count: int) -> None:
    """Write some images as PNG, in a folder per class."""
    images, labels = mapped(source)
    for number in range(CLASSES):
        (root / str(number)).mkdir(parents=True)
    for index in np.linspace(0, len(labels) - 1, count).astype(int).tolist():
        Image.fromarray(images[index]).save(root / str(labels[index]) / f'{index}.png')


def peer_transforms() -> list[Any]:
    """The same augmentation by torchvision."""
    return [transforms.RandomCrop(SIDE, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]


class PeerArchive(torch.utils.data.Dataset):
    """Archive as a data set that returns one image at a time."""

    def __init__(self, path: Path, *, loaded: bool) -> None:
        images, self.labels = mapped(path)
        self.images = np.load(path)['image'] if loaded else images
        self.transform = transforms.Compose([transforms.ToPILImage(), *peer_transforms()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def our_batches(path: Path, batch_size: int, device: str = 'cpu') -> Iterator[Any]:
    """Batches of this package, without end."""
    batches = MixedBatches(
        open_archive(path, num_classes=CLASSES), batch_size=batch_size, synthetic_fraction=0., seed=0,
        real_augment=Augment(crop_padding=4, hflip=True), device=device)
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def peer_batches(dataset: Any, batch_size: int) -> Iterator[Any]:
    """Batches of a DataLoader in this process, without end."""
    loader = torch.utils.data.DataLoader(dataset, batch_size, shuffle=True, drop_last=True)
    while True:
        yield from loader


def rate(batches: Iterator[Any], count: int, limit: float = 8.) -> float:
    """Batches per second after three to warm up: over `count` of them, or about `limit` seconds."""
    for _ in range(3):
        next(batches)
    started, done = time.perf_counter(), 0
    while done < count and time.perf_counter() - started < limit:
        next(batches)
        done += 1
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return done / (time.perf_counter() - started)


def resident() -> float:
    """Resident memory in MB."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() / 1e6


def check(path: Path, device: str) -> None:
    """Raise ValueError if images are read or augmented wrongly."""
    images, labels = mapped(path)
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:512]
    x, y = open_archive(path, num_classes=CLASSES).take(rows)
    if not (np.array_equal(x.permute(0, 2, 3, 1), images[rows]) and np.array_equal(y, labels[rows])):
        raise ValueError(f'{path}: images or labels that are read differ from the archive; nothing was timed.')
    augment = Augment(crop_padding=4, hflip=True)
    draws = augment.draw(len(x), x.shape[1:], generator=torch.Generator().manual_seed(0))
    there = augment.apply(x.to(device), {name: values.to(device) for name, values in draws.items()})
    if not torch.equal(augment.apply(x, draws), there.cpu()):
        raise ValueError(f'batches augmented on {device} differ from those augmented on the CPU; nothing was timed.')


def measure_start(args: argparse.Namespace) -> Values:
    """Time to the first batch, and growth of memory, without imports."""
    with open(args.archive, 'rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    torch.ones(64, 64) @ torch.ones(64, 64)
    before, started = resident(), time.perf_counter()
    batches = our_batches(args.archive, args.batch_size)
    next(batches)
    first, grown = time.perf_counter() - started, resident() - before
    for _ in range(args.batches):
        next(batches)
        grown = max(grown, resident() - before)
    return {('first batch, archive not in the page cache', 's'): first,
            (f'growth of resident memory over {args.batches} batches', 'MB'): grown}


def measure_ours(args: argparse.Namespace) -> Values:
    """Batches from the archive on disk."""
    value = rate(our_batches(args.archive, args.batch_size), args.batches)
    return {(OURS, RATE): value, (OURS, 'images/s per core'): value * args.batch_size / args.threads}


def measure_device(args: argparse.Namespace) -> Values:
    """Augmentation on the device; on a GPU also copies to it, and batches that a thread makes there in advance."""
    device, augment = torch.device(args.device), Augment(crop_padding=4, hflip=True)
    count, size = min(args.batches, 100), args.batch_size
    images = torch.from_numpy(np.array(mapped(args.archive)[0][:size])).permute(0, 3, 1, 2).contiguous()
    on_device, generator = images.to(device), torch.Generator().manual_seed(0)

    def augmented() -> None:
        for _ in range(count):
            draws = augment.draw(len(images), images.shape[1:], generator=generator)
            augment.apply(on_device, {name: values.to(device) for name, values in draws.items()}).float().div_(255)

    augmented()
    found = {(f'augmentation on {args.device}', 'images/s'): count * len(images) / seconds(augmented)}
    if device.type == 'cuda':
        pinned = torch.cat([images] * 100).pin_memory()
        copied = statistics.median(seconds(lambda: pinned.to(device, non_blocking=True)) for _ in range(5))
        with Prefetched(our_batches(args.archive, size, args.device), device=device) as batches:
            prefetched = rate(batches, args.batches)
        found |= {('copies to the GPU', 'GB/s'): pinned.nbytes / 1e9 / copied,
                  (f'{OURS}, made on the GPU in advance', 'images/s'): prefetched * size,
                  (f'augmentation on {args.device}, most allocated', 'MiB'): peak_bytes(augmented, device) / 2**20}
    return found


def measure_memmap(args: argparse.Namespace) -> Values:
    """DataLoader over the mapped archive."""
    dataset = PeerArchive(args.archive, loaded=False)
    return {('DataLoader, memmap', RATE): rate(peer_batches(dataset, args.batch_size), args.batches)}


def measure_loaded(args: argparse.Namespace) -> Values:
    """DataLoader over the archive in memory."""
    before, started = resident(), time.perf_counter()
    batches = peer_batches(PeerArchive(args.archive, loaded=True), args.batch_size)
    next(batches)
    first, grown = time.perf_counter() - started, resident() - before
    return {('DataLoader, loaded: first batch', 's'): first, ('DataLoader, loaded: growth of memory', 'MB'): grown,
            ('DataLoader, loaded', RATE): rate(batches, args.batches)}


def measure_folder(args: argparse.Namespace) -> Values:
    """DataLoader over an image folder, and this package over the same."""
    with tempfile.TemporaryDirectory(dir=args.archive.parent) as folder:
        root = Path(folder) / 'images'
        make_folder(args.archive, root, args.folder_images)
        images = datasets.ImageFolder(str(root), transforms.Compose(peer_transforms()))
        return {('DataLoader, folder', RATE): rate(peer_batches(images, args.batch_size), args.batches),
                ('timm_paf, folder', RATE): rate(our_batches(root, args.batch_size), args.batches)}


def measure_training(args: argparse.Namespace) -> Values:
    """Share of PGD-10 updates that is spent waiting for the next batch."""
    device = torch.device(args.device)
    model = timm.create_model(args.model, num_classes=CLASSES).to(device)
    task = AdversarialTrainingTask(model, PGD(eps='8/255', step_size='2/255', steps=10), device=device, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    shares = []
    with Prefetched(our_batches(args.archive, args.train_batch_size, args.device), device=device) as batches:
        for _ in range(args.train_steps + 1):
            waited, started = batches.waited, time.perf_counter()
            batch = next(batches)
            optimizer.zero_grad()
            loss = task(batch.x, batch.target)['loss']
            loss.backward()
            optimizer.step()
            float(loss.detach())  # waits for the device
            shares.append((batches.waited - waited) / (time.perf_counter() - started))
    name = f'{args.model}, PGD-10, batch {args.train_batch_size}: waiting for images'
    return {(name, '% of an update'): 100 * statistics.mean(shares[1:])}  # the first one opens files


MEASURES: dict[str, Callable[[argparse.Namespace], Values]] = {
    'start': measure_start, 'ours': measure_ours, 'device': measure_device, 'mapped': measure_memmap,
    'loaded': measure_loaded, 'folder': measure_folder, 'training': measure_training}


def measure_one(name: str, args: argparse.Namespace) -> Values:
    """Run one measure; called in a process of its own."""
    torch.set_num_threads(args.threads)
    return MEASURES[name](args)


def as_table(rounds: Sequence[Values]) -> Table:
    """Table of all rounds, with the ratios to other readers."""
    table = Table('Batches of 32x32 images')
    values = {key: [one[key] for one in rounds] for key in rounds[0]}
    for (name, unit), each in values.items():
        table.add(f'{name}, {unit}', 'value', each)
    for ours, peer in ((OURS, 'memmap'), (OURS, 'loaded'), (OURS, 'folder'), ('timm_paf, folder', 'folder')):
        mine, theirs = values.get((ours, RATE)), values.get((f'DataLoader, {peer}', RATE))
        if mine and theirs:
            table.add(f'{ours} ÷ DataLoader, {peer}', 'value', ratios(mine, theirs))
    return table


def measure(args: argparse.Namespace) -> list[Table]:
    if not args.archive.exists():
        print(f'making {args.archive}', file=sys.stderr)
        make_archive(args.archive, args.images or 2_000_000)
    elif args.images not in (None, count := len(mapped(args.archive)[1])):
        raise ValueError(f'{args.archive} exists and holds {count} images, not {args.images}; use another name.')
    check(args.archive, args.device)
    rounds: list[Values] = []
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        for number in range(args.rounds):
            rounds.append({})
            for name in args.measures:
                print(f'round {number + 1} of {args.rounds}: {name}', file=sys.stderr)
                rounds[-1] |= pool.apply(measure_one, (name, args))
    return [as_table(rounds)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__file__, __doc__, rounds=3)
    parser.add_argument('--archive', type=Path, required=True, help='stored .npz; made if it does not exist')
    parser.add_argument('--images', type=int, help='images of an archive that is made; unset: 2 million')
    parser.add_argument('--folder-images', type=int, default=20_000, help='PNG files of the folder')
    parser.add_argument('--batch-size', type=int, default=256, help='images per batch')
    parser.add_argument('--batches', type=int, default=500, help='most batches per measure')
    parser.add_argument('--model', default='resnet18_relu', help='model to train')
    parser.add_argument('--train-batch-size', type=int, default=32, help='images per update')
    parser.add_argument('--train-steps', type=int, default=3, help='updates')
    parser.add_argument('--measures', nargs='+', choices=tuple(MEASURES), default=list(MEASURES))
    return run(parser, measure, argv)


if __name__ == '__main__':
    sys.exit(main())
