"""Cost of feeding images, from an archive of millions to the batch, compared with torch's DataLoader and with training.

    python recipes/benchmarks/data.py --archive output/2m.npz --json output/data.json

If the archive does not exist, it is made: --images images of 32x32 in 10 classes, stored uncompressed and sorted by
class (6 GB for 2 million). Each measure runs in a process of its own, once per round. All readers give batches (B, 3,
32, 32) float32 in [0, 1], shifted by up to 4 pixels and mirrored at random, in random order. The archive is removed
from the page cache before its first batch is timed. Before anything is timed, the images and labels that are read must
be those of the archive, and batches augmented on --device must equal those augmented on the CPU.

The other readers are a DataLoader over the mapped archive, with torchvision's transforms; over the archive loaded with
`numpy.load`; and over torchvision's ImageFolder with --folder-images PNG files.
"""
import argparse
import functools
import itertools
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from _timing import Table, new_parser, ratios, run, seconds
from PIL import Image
from torch import Tensor
from torchvision import datasets, transforms

from timm_paf.attacks import PGD
from timm_paf.data import Augment, MixedBatches, Prefetched, open_archive
from timm_paf.data.headers import zip_headers
from timm_paf.tasks import AdversarialTrainingTask

Values = dict[str, float]  # name and unit -> value
OURS, RATE, CLASSES = 'timm_paf, archive', 'batches/s', 10
AUGMENT = Augment(crop_padding=4, hflip=True)
TRANSFORM = transforms.Compose([
    transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()])


def make_archive(path: Path, count: int) -> None:
    """Write images sorted by class: windows of one smooth noisy signal, each a byte further, not held in memory."""
    generator = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    signal = generator.integers(40, 200, count // 24 + 200, dtype=np.uint8).repeat(24)
    signal += generator.integers(0, 24, len(signal), dtype=np.uint8)
    images = np.lib.stride_tricks.as_strided(signal, (count, 32, 32, 3), (1, 96, 3, 1), writeable=False)
    part = path.with_suffix('.part.npz')
    np.savez(part, image=images, label=np.arange(count) * CLASSES // count)
    part.replace(path)


class PeerArchive(torch.utils.data.Dataset):
    """Archive, mapped in place or loaded into memory, as a data set that returns one image at a time."""

    def __init__(self, path: Path, loaded: bool = False) -> None:
        image, _ = zip_headers(path, ('image', 'label'))
        with np.load(path) as arrays:
            self.labels = arrays['label']
            self.images = arrays['image'] if loaded else np.memmap(
                path, image.dtype, 'r', image.offset or 0, image.shape)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return TRANSFORM(Image.fromarray(self.images[index])), int(self.labels[index])


def our_batches(path: Path, batch_size: int, device: str = 'cpu') -> Iterator[Any]:
    """Batches of this package, without end."""
    batches = MixedBatches(
        open_archive(path, num_classes=CLASSES), batch_size=batch_size, synthetic_fraction=0., seed=0,
        real_augment=AUGMENT, device=device)
    for epoch in itertools.count():
        yield from batches.epoch(epoch)


def peer_batches(open_dataset: Callable[[], Any], batch_size: int) -> Iterator[Any]:
    """Batches of a DataLoader in this process, without end; the first one also opens the data set."""
    loader = torch.utils.data.DataLoader(open_dataset(), batch_size, shuffle=True, drop_last=True)
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
    return done / (time.perf_counter() - started)


def measured(name: str, batches: Iterator[Any], count: int) -> Values:
    """Seconds to the first batch, growth of resident memory over `count` of them without that of imports, and rate."""
    def resident() -> float:
        return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() / 1e6

    before, first = resident(), seconds(next, batches)
    value = rate(batches, count)
    return {f'{name}: first batch, s': first, f'{name}: growth of memory, MB': resident() - before,
            f'{name}, {RATE}': value}


def check(path: Path, device: str) -> None:
    """Raise ValueError if images are read or augmented wrongly."""
    archive = PeerArchive(path)
    rows = torch.randperm(len(archive), generator=torch.Generator().manual_seed(0))[:512]
    x, y = open_archive(path, num_classes=CLASSES).take(rows)
    if not (np.array_equal(x.permute(0, 2, 3, 1), archive.images[rows]) and np.array_equal(y, archive.labels[rows])):
        raise ValueError(f'{path}: images or labels that are read differ from the archive; nothing was timed.')
    draws = AUGMENT.draw(len(x), x.shape[1:], generator=torch.Generator().manual_seed(0))
    there = AUGMENT.apply(x.to(device), {name: values.to(device) for name, values in draws.items()})
    if not torch.equal(AUGMENT.apply(x, draws), there.cpu()):
        raise ValueError(f'batches augmented on {device} differ from those augmented on the CPU; nothing was timed.')


def measure_ours(args: argparse.Namespace) -> Values:
    """Batches from the archive on disk, which is not in the page cache at first."""
    with open(args.archive, 'rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    torch.ones(64, 64) @ torch.ones(64, 64)
    return measured(OURS, our_batches(args.archive, args.batch_size), args.batches)


def measure_peers(args: argparse.Namespace, loaded: bool = False) -> Values:
    """DataLoader over the archive, mapped or in memory."""
    batches = peer_batches(lambda: PeerArchive(args.archive, loaded), args.batch_size)
    return measured(f'DataLoader, {"loaded" if loaded else "memmap"}', batches, args.batches)


def measure_folder(args: argparse.Namespace) -> Values:
    """DataLoader over an image folder, and this package over the same."""
    archive = PeerArchive(args.archive)
    with tempfile.TemporaryDirectory(dir=args.archive.parent) as root:
        for index in np.linspace(0, len(archive) - 1, args.folder_images).astype(int).tolist():
            path = Path(root, str(archive.labels[index]), f'{index}.png')
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(archive.images[index]).save(path)
        peer = peer_batches(lambda: datasets.ImageFolder(root, TRANSFORM), args.batch_size)
        return {f'DataLoader, folder, {RATE}': rate(peer, args.batches),
                f'timm_paf, folder, {RATE}': rate(our_batches(Path(root), args.batch_size), args.batches)}


def measure_training(args: argparse.Namespace) -> Values:
    """Share of PGD-10 updates that is spent waiting for the next batch."""
    device = torch.device(args.device)
    model = timm.create_model(args.model, num_classes=CLASSES).to(device)
    task = AdversarialTrainingTask(model, PGD(eps='8/255', step_size='2/255', steps=10), device=device, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Prefetched(our_batches(args.archive, args.train_batch_size, args.device), device=device) as batches:
        for update in range(args.train_steps + 1):
            if update == 1:  # the first one opens files
                waited, started = batches.waited, time.perf_counter()
            batch = next(batches)
            optimizer.zero_grad()
            loss = task(batch.x, batch.target)['loss']
            loss.backward()
            optimizer.step()
            float(loss.detach())  # waits for the device
        share = (batches.waited - waited) / (time.perf_counter() - started)
    return {f'{args.model}, PGD-10, batch {args.train_batch_size}: waiting for images, % of an update': 100 * share}


MEASURES: dict[str, Callable[[argparse.Namespace], Values]] = {
    'ours': measure_ours, 'mapped': measure_peers, 'loaded': functools.partial(measure_peers, loaded=True),
    'folder': measure_folder, 'training': measure_training}


def measure_one(name: str, args: argparse.Namespace) -> Values:
    torch.set_num_threads(args.threads)
    return MEASURES[name](args)


def measure(args: argparse.Namespace) -> Iterator[Table]:
    if not args.archive.exists():
        print(f'making {args.archive}', file=sys.stderr)
        make_archive(args.archive, args.images or 2_000_000)
    elif args.images not in (None, count := len(PeerArchive(args.archive))):
        raise ValueError(f'{args.archive} exists and holds {count} images, not {args.images}; use another name.')
    check(args.archive, args.device)
    values: dict[str, list[float]] = {}
    table = Table('Batches of 32x32 images:')
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        for number, name in itertools.product(range(1, args.rounds + 1), args.measures):
            print(f'round {number} of {args.rounds}: {name}', file=sys.stderr)
            for row, value in pool.apply(measure_one, (name, args)).items():
                values.setdefault(row, []).append(value)
                table.add(row, 'value', values[row])
            yield table
    for ours, peer in ((OURS, 'memmap'), (OURS, 'loaded'), (OURS, 'folder'), ('timm_paf, folder', 'folder')):
        mine, theirs = (values.get(f'{name}, {RATE}') for name in (ours, f'DataLoader, {peer}'))
        if mine and theirs:
            table.add(f'{ours} ÷ DataLoader, {peer}', 'value', ratios(mine, theirs))
            yield table


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
