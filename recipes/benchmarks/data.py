"""What feeding images costs: from an archive of millions to the batch, beside torch's DataLoader, and beside training.

    python recipes/benchmarks/data.py --archive output/2m.npz --json output/data.json

An archive that is not there is made: --images images of 32x32 in 10 classes, stored uncompressed and sorted by class,
in the form of the EDM archives (6 GB for 2 million). Each measure runs in a process of its own with --threads threads
(1: figures are those of one core), all of them once in each of --rounds rounds; a line is the median over the rounds
with half the distance of the quartiles, and ratios are taken within a round. Every reader gives batches
(B, 3, 32, 32) float32 in [0, 1], shifted by up to 4 pixels and mirrored at random, in random order. The archive is put
out of the page cache before its first batch is timed. Before anything is, images and labels that are read have to be
those of the archive, and batches augmented on --device those augmented on the CPU.

The floor is what has to move, a byte in and four out for each number, at the bandwidth of a copy measured in the same
process. On a GPU the copies to it and batches that a thread makes there ahead are measured as well.

The peers:

- `DataLoader, memmap`: torch's DataLoader over a data set that maps the archive's images in place, one image at a time,
  with torchvision's transforms: the best that can be had from it without loading the archive.
- `DataLoader, loaded`: the same over `numpy.load`ed arrays, as published training code has it; the whole archive in
  memory.
- `DataLoader, folder`: torchvision's ImageFolder over PNG files of the first --folder-images images.
"""
import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _benchmarking import chosen_device, command_line, device_name, half_quartiles, peak_bytes, seconds, summary_line
from _roofline import Machine

from timm_paf._files import whole_file
from timm_paf.data.headers import zip_header
from timm_paf.evaluation import library_versions

SIDE, CLASSES, CHUNK = 32, 10, 20_000


class Measure(NamedTuple):
    """One line of the result; `target` is what the figure has to be below, where there is such a bound."""
    name: str
    value: float
    unit: str
    target: float | None = None
    spread: float = 0.

    def __str__(self) -> str:
        bound = '' if self.target is None else f'  (target: below {self.target:g}, {"met" if self.met else "missed"})'
        return f'{self.name:<58} {self.value:>10.3f} ± {self.spread:.3f} {self.unit}{bound}'

    @property
    def met(self) -> bool:
        """Whether the figure is inside its bound."""
        return self.target is None or self.value < self.target


def over_rounds(rounds: list[list[Measure]]) -> list[Measure]:
    """Each measure's median over the rounds, with half the distance of the quartiles."""
    return [
        each[0]._replace(value=statistics.median(m.value for m in each), spread=half_quartiles([m.value for m in each]))
        for each in zip(*rounds, strict=True)]


def make_archive(path: Path, count: int) -> None:
    """Write images like photographs in size (smooth, with noise), sorted by class, without holding them in memory."""
    labels = np.arange(count) * CLASSES // count
    generator = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as whole, zipfile.ZipFile(whole, 'w', zipfile.ZIP_STORED) as archive:
        with archive.open('image.npy', 'w', force_zip64=True) as file:
            header = {'descr': '|u1', 'fortran_order': False, 'shape': (count, SIDE, SIDE, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, count, CHUNK):
                size = min(CHUNK, count - start)
                coarse = generator.integers(40, 200, (size, 4, 4, 3), dtype=np.uint8)
                images = coarse.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
                images += generator.integers(0, 24, images.shape, dtype=np.uint8)
                file.write(images.data)
                print(f'\rmaking {path}: {start + size}/{count}', end='', file=sys.stderr)
        with archive.open('label.npy', 'w') as file:
            np.lib.format.write_array(file, labels)
    print(file=sys.stderr)


def make_folder(source: Path, root: Path, count: int) -> None:
    """PNG files of some images, taken evenly, in a folder for each class."""
    images, labels = mapped(source)
    for number in range(CLASSES):
        (root / str(number)).mkdir(parents=True)
    for index in np.linspace(0, len(labels) - 1, count).astype(int).tolist():
        Image.fromarray(images[index]).save(root / str(labels[index]) / f'{index}.png')


def mapped(path: Path) -> tuple[np.memmap, np.ndarray]:
    """The images of a stored archive, mapped in place, and its labels."""
    with zipfile.ZipFile(path) as archive:
        image = zip_header(path, archive, 'image')
    assert image.offset is not None, 'the archive is deflated'
    with np.load(path) as archive:
        return np.memmap(path, image.dtype, 'r', image.offset, image.shape), archive['label']


class Archive(torch.utils.data.Dataset):
    """An archive as people write such a data set: one image at a time."""

    def __init__(self, path: Path, *, loaded: bool) -> None:
        from torchvision import transforms
        self.images, self.labels = mapped(path)
        if loaded:
            self.images = np.load(path)['image']
        self.transform = transforms.Compose([transforms.ToPILImage(), *peer_transforms()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def peer_transforms() -> list[Any]:
    """The usual augmentation, by torchvision."""
    from torchvision import transforms
    return [transforms.RandomCrop(SIDE, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]


def our_batches(path: Path, batch_size: int, device: str = 'cpu') -> Iterator[Any]:
    """Epochs of ours, without end."""
    from timm_paf.data import Augment, MixedBatches, open_archive
    batches = MixedBatches(
        open_archive(path, num_classes=CLASSES), batch_size=batch_size, synthetic_fraction=0., seed=0,
        real_augment=Augment(crop_padding=4, hflip=True), device=device)
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def peer_batches(dataset: Any, batch_size: int) -> Iterator[Any]:
    """Epochs of torch's DataLoader in this process, without end."""
    loader = torch.utils.data.DataLoader(dataset, batch_size, shuffle=True, drop_last=True)
    while True:
        yield from loader


def rate(batches: Iterator[Any], count: int, limit: float = 8.) -> float:
    """Batches a second after a few to warm up; at most `count` of them, and about `limit` seconds."""
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
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def measure_start(args: argparse.Namespace) -> list[Measure]:
    """Time to the first batch and growth of memory over many, imports not counted."""
    with open(args.archive, 'rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    torch.ones(64, 64) @ torch.ones(64, 64)
    before, started = resident(), time.perf_counter()
    batches = our_batches(args.archive, args.batch_size)
    next(batches)
    first = time.perf_counter() - started
    grown = resident() - before
    for _ in range(args.batches):
        next(batches)
        grown = max(grown, resident() - before)
    return [Measure('first batch after opening, archive not in the page cache', first, 's', 2.),
            Measure(f'growth of resident memory over {args.batches} batches', grown, 'MB', 300.)]


def check(path: Path, device: torch.device) -> None:
    """Raise ValueError if images are read or augmented otherwise than the archive and the CPU have them."""
    from timm_paf.data import Augment, open_archive
    images, labels = mapped(path)
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:512]
    x, y = open_archive(path, num_classes=CLASSES).take(rows)
    same = np.array_equal(x.permute(0, 2, 3, 1), images[rows]) and np.array_equal(y, labels[rows])
    if not same:
        raise ValueError(f'{path}: images or labels that are read are not those of the archive; nothing was timed.')
    augment = Augment(crop_padding=4, hflip=True)
    draws = augment.draw(len(x), x.shape[1:], generator=torch.Generator().manual_seed(0))
    there = augment.apply(x.to(device), {name: values.to(device) for name, values in draws.items()})
    if not torch.equal(augment.apply(x, draws), there.cpu()):
        raise ValueError(f'batches augmented on {device} are not those augmented on the CPU; nothing was timed.')


def of_floor(images_per_second: float, device: torch.device) -> float:
    """Share of the floor in percent, with the bandwidth of a copy that is measured now."""
    machine = Machine(device, [])
    for _ in range(3):
        machine.round()
    return 100 * images_per_second * (1 + 4) * 3 * SIDE**2 / statistics.median(machine.copies)


def measure_ours(args: argparse.Namespace) -> list[Measure]:
    """Batches a second from the archive on disk."""
    value = rate(our_batches(args.archive, args.batch_size), args.batches)
    return [Measure('timm_paf, archive: batches/s', value, 'batches/s'),
            Measure('timm_paf, archive: images/s a core', value * args.batch_size / args.threads, 'images/s'),
            Measure('timm_paf, archive: share of the floor', of_floor(
                value * args.batch_size, torch.device('cpu')), '%')]


def measure_device(args: argparse.Namespace) -> list[Measure]:
    """Augmentation of batches that are on the device; on a GPU also copies to it, and batches made there ahead."""
    from timm_paf.data import Augment, Prefetched
    from timm_paf.data.mixing import to_device
    device, augment = torch.device(args.device), Augment(crop_padding=4, hflip=True)
    stored = mapped(args.archive)[0]
    kept = [torch.from_numpy(np.array(stored[i * args.batch_size:(i + 1) * args.batch_size])).permute(0, 3, 1, 2)
            for i in range(max(1, min(8, len(stored) // args.batch_size)))]
    on_device = [batch.contiguous().to(device) for batch in kept]
    generator = torch.Generator().manual_seed(0)
    count = min(args.batches, 100)

    def augmented() -> None:
        for number in range(count):
            images = on_device[number % len(kept)]
            draws = augment.draw(len(images), images.shape[1:], generator=generator)
            draws = {name: to_device(values, device) for name, values in draws.items()}
            augment.apply(images, draws).float().div_(255)

    peak = peak_bytes(augmented, device)
    value = count * len(kept[0]) / seconds(augmented, device)
    found = [Measure(f'augmentation on {device.type}: images/s', value, 'images/s'),
             Measure(f'augmentation on {device.type}: share of the floor', of_floor(value, device), '%')]
    if peak is None:
        return found
    pinned = torch.cat(kept * 20).pin_memory()
    copied = statistics.median(seconds(lambda: pinned.to(device, non_blocking=True), device) for _ in range(5))
    with Prefetched(our_batches(args.archive, args.batch_size, args.device), device=device) as batches:
        ahead = rate(batches, args.batches)
    return [*found, Measure(f'augmentation on {device.type}: most allocated', peak / 2**20, 'MiB'),
            Measure('copies to the GPU', pinned.nbytes / 1e9 / copied, 'GB/s'),
            Measure('timm_paf, archive, made on the GPU ahead: images/s', ahead * args.batch_size, 'images/s')]


def measure_memory(args: argparse.Namespace) -> list[Measure]:
    """Batches a second from as many images in memory as CIFAR-10 has."""
    from timm_paf.data import Augment, LabelledImages, MixedBatches
    images, labels = mapped(args.archive)
    count = min(50_000, len(labels))
    real = LabelledImages(torch.from_numpy(np.array(images[:count])).permute(0, 3, 1, 2),
                          torch.from_numpy(labels[:count].astype(np.int64)), CLASSES, 'memory')
    epochs = MixedBatches(real, batch_size=args.batch_size, synthetic_fraction=0., seed=0,
                          real_augment=Augment(crop_padding=4, hflip=True))
    batches = (batch for epoch in range(1_000_000) for batch in epochs.epoch(epoch))
    value = rate(batches, args.batches)
    return [Measure('timm_paf, in memory: images/s a core', value * args.batch_size / args.threads, 'images/s')]


def measure_mapped(args: argparse.Namespace) -> list[Measure]:
    """A DataLoader over the mapped archive."""
    value = rate(peer_batches(Archive(args.archive, loaded=False), args.batch_size), args.batches)
    return [Measure('DataLoader, memmap: batches/s', value, 'batches/s')]


def measure_loaded(args: argparse.Namespace) -> list[Measure]:
    """A DataLoader over the archive in memory, and what that costs."""
    before, started = resident(), time.perf_counter()
    batches = peer_batches(Archive(args.archive, loaded=True), args.batch_size)
    next(batches)
    first, grown = time.perf_counter() - started, resident() - before
    return [Measure('DataLoader, loaded: first batch', first, 's'),
            Measure('DataLoader, loaded: growth of resident memory', grown, 'MB'),
            Measure('DataLoader, loaded: batches/s', rate(batches, args.batches), 'batches/s')]


def measure_folder(args: argparse.Namespace) -> list[Measure]:
    """A DataLoader over an image folder, and ours over the same."""
    from torchvision import datasets, transforms

    with tempfile.TemporaryDirectory(dir=args.archive.parent) as folder:
        root = Path(folder) / 'images'
        make_folder(args.archive, root, args.folder_images)
        peer = rate(peer_batches(
            datasets.ImageFolder(str(root), transforms.Compose(peer_transforms())), args.batch_size), args.batches)
        ours = rate(our_batches(root, args.batch_size), args.batches)
    return [Measure('DataLoader, folder: batches/s', peer, 'batches/s'),
            Measure('timm_paf, folder: batches/s', ours, 'batches/s')]


def measure_training(args: argparse.Namespace) -> list[Measure]:
    """The share of PGD-10 steps that is spent waiting for the next batch, as the training summary has it."""
    import timm

    from timm_paf.attacks import PGD
    from timm_paf.data import Prefetched
    from timm_paf.tasks import AdversarialTrainingTask

    device = torch.device(args.device)
    model = timm.create_model(args.model, num_classes=CLASSES).to(device)
    task = AdversarialTrainingTask(model, PGD(eps='8/255', step_size='2/255', steps=10), device=device, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    shares = []
    with Prefetched(our_batches(args.archive, args.train_batch_size, args.device), device=device) as batches:
        for step in range(args.train_steps + 1):
            waited, started = batches.waited, time.perf_counter()
            batch = next(batches)
            optimizer.zero_grad()
            loss = task(batch.x, batch.target)['loss']
            loss.backward()
            optimizer.step()
            float(loss.detach())  # waits for the device
            if step:  # not the first one, which opens files and warms up
                shares.append((batches.waited - waited) / (time.perf_counter() - started))
    return [Measure(f'{args.model}, PGD-10, batch {args.train_batch_size}: share of a step spent waiting',
                    100 * statistics.mean(shares), '%', 1.)]


MEASURES: dict[str, Callable[[argparse.Namespace], list[Measure]]] = {
    'start': measure_start, 'ours': measure_ours, 'device': measure_device, 'memory': measure_memory,
    'mapped': measure_mapped, 'loaded': measure_loaded, 'folder': measure_folder, 'training': measure_training}


def _measure(name: str, args: argparse.Namespace) -> list[Measure]:
    torch.set_num_threads(args.threads)
    return MEASURES[name](args)


def ratios(results: list[Measure]) -> list[Measure]:
    """Ours over each peer, where both were measured."""
    values = {m.name: m.value for m in results}
    ours = values.get('timm_paf, archive: batches/s')
    return [
        Measure(f'timm_paf, archive, over {name.removesuffix(": batches/s")}', ours / value, 'times')
        for name, value in values.items() if ours and name.startswith('DataLoader') and name.endswith('batches/s')]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--archive', type=Path, required=True, help='stored .npz; made if it is not there')
    parser.add_argument('--json', type=Path, help='file for the figures')
    parser.add_argument('--images', type=int, help='images of an archive that is made; 2 million if not given')
    parser.add_argument('--folder-images', type=int, default=20_000, help='PNG files for the folder')
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--batches', type=int, default=500, help='most batches for a rate')
    parser.add_argument('--threads', type=int, default=1, help='threads of torch')
    parser.add_argument('--device', default='cpu', help='where images are augmented and training steps are made')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--model', default='resnet18_relu', help='what is trained')
    parser.add_argument('--train-batch-size', type=int, default=32)
    parser.add_argument('--train-steps', type=int, default=3)
    parser.add_argument('--measures', nargs='+', choices=tuple(MEASURES), default=list(MEASURES), help='which ones')
    args = parser.parse_args(argv)
    try:
        device = chosen_device(args.device)
        if args.rounds < 1:
            raise ValueError(f'--rounds = {args.rounds}: expected 1 or more.')
        if not args.archive.exists():
            make_archive(args.archive, 2_000_000 if args.images is None else args.images)
        elif args.images not in (None, count := len(mapped(args.archive)[1])):
            raise ValueError(
                f'{args.archive} is there and holds {count} images, not {args.images}; give another name or leave out '
                '--images.')
        check(args.archive, device)
    except (ValueError, OSError, RuntimeError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    rounds: list[list[Measure]] = []
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        for number in range(args.rounds):
            rounds.append([])
            for name in args.measures:
                print(f'round {number + 1} of {args.rounds}: {name}', file=sys.stderr)
                rounds[-1] += pool.apply(_measure, (name, args))
            rounds[-1] += ratios(rounds[-1])
    results = over_rounds(rounds)
    command = None if argv is None else [__file__, *argv]
    print('\n'.join(map(str, results)))
    print(f'{summary_line(device, command)}; {args.rounds} rounds')
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({
            'command': command_line(command), 'date': str(date.today()), 'versions': library_versions(),
            'device': device_name(device), 'cores': os.cpu_count(), 'threads': args.threads,
            'batch_size': args.batch_size, 'archive_bytes': args.archive.stat().st_size,
            'measures': [{**m._asdict(), 'met': m.met, 'rounds': args.rounds} for m in results]}, indent=2) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
