"""Images of a run: flags of both commands by what they open, own images, and what is shown while they are opened."""
import contextlib
import io
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits
from tiny_run import FAST, open_measurement, open_trainer

from timm_paf._distributed import Processes
from timm_paf.data import DataChanged, Decoding, MixedBatches, open_archive, to_unit_range
from timm_paf.data.decoded import folder_images
from timm_paf.data.streamed import StreamedImages
from timm_paf.engine import Trainer, parse_train_config
from timm_paf.engine.data import as_source, own_splits, reading_bar, source_lines
from timm_paf.engine.data import open_dataset as open_splits
from timm_paf.engine.shared_config import DataConfig

# images of each class in the splits of the folder
SPLITS = {'train': 10, 'validation': 4, 'practice': 8, 'holdout': 2, 'exam': 3}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Zeros, ones and twos of the digits as image files of 16x16 pixels, in two folders; archives; a checkpoint."""
    root, raw = tmp_path_factory.mktemp('files'), load_digits()
    for place, splits in (('digits', SPLITS), ('other', {'train': 5, 'validation': 4})):
        for label in range(3):
            images = iter(raw.images[raw.target == label])
            for split, count in splits.items():
                (root / place / split / str(label)).mkdir(parents=True)
                for number in range(count):
                    pixels = (next(images) * 15).astype(np.uint8).repeat(2, 0).repeat(2, 1)
                    Image.fromarray(pixels).save(root / place / split / str(label) / f'{number}.png')
    for name, count in (('train', 40), ('test', 20), ('more', 30)):
        pixels = (raw.images[:count] * 15).astype(np.uint8)[..., None]
        np.savez(root / f'{name}.npz', image=pixels, label=np.minimum(raw.target[:count], 2))
    torch.save({'state_dict': {}}, root / 'nothing.pth')
    return root


@pytest.fixture
def opened(files, tmp_path, monkeypatch):
    """Opens a run or a measurement; gives the splits that it has opened."""
    def start(command, argv):
        seen = SimpleNamespace()

        def open_dataset(*arguments, **more):
            splits = open_splits(*arguments, **more)
            seen.train, seen.val, seen.test = splits
            return splits

        argv = [word.replace('FILES', str(files)) for word in argv]
        with monkeypatch.context() as patch:
            for module in ('data', 'measurement'):
                patch.setattr(f'timm_paf.engine.{module}.open_dataset', open_dataset)
            patch.setattr(
                'timm_paf.engine.measurement.load_network', lambda model, *_, **__: (model, 'nothing', '', '', False))
            if command == 'train':
                open_trainer([*FAST, '--synthetic-fraction', '0', '--output', str(tmp_path), *argv])
            else:
                open_measurement(['--checkpoint', str(files / 'nothing.pth'), '--eps', '0.1', '--device', 'cpu', *argv])
        return seen
    return start


def pixels(data):
    return data.take(torch.arange(len(data)))[0]


def training_pixels(seen):
    order = torch.arange(len(seen.train))
    ((images, _),) = seen.train.prefetch(lambda _: order, 1, key=(0,))
    return images


def cropped(seen):
    """Whether training images are other than those that evaluation would see."""
    return not torch.equal(training_pixels(seen), pixels(seen.train))


MODEL = ['--model', 'wrn10_2_relu']
FOLDER = {  # every flag is given, so that each that is dropped is missed
    '--dataset': 'folder', '--data-dir': 'FILES/digits', '--val-size': '6', '--img-size': '8', '--in-chans': '1',
    '--train-crop-mode': 'resize', '--crop-pct': '1', '--workers': '0', '--train-split': 'practice',
    '--test-split': 'exam'}
CHANGES = {
    'dataset': (lambda seen: len(seen.test), 9, {'--dataset': 'FILES/train.npz'}, 20),
    'data-dir': (lambda seen: len(seen.train), 18, {'--data-dir': 'FILES/other', '--train-split': 'train',
                                                    '--test-split': 'validation'}, 9),
    'val-size': (lambda seen: len(seen.val), 6, {'--val-size': '3'}, 3),
    'train-split': (lambda seen: len(seen.train), 18, {'--train-split': 'train'}, 24),
    'val-split': (lambda seen: len(seen.train), 18, {'--val-split': 'holdout', '--val-size': '1'}, 24),
    'test-split': (lambda seen: len(seen.test), 9, {'--test-split': 'validation'}, 12),
    'img-size': (lambda seen: seen.train.image_shape, (1, 8, 8), {'--img-size': '12'}, (1, 12, 12)),
    'in-chans': (lambda seen: seen.train.image_shape, (1, 8, 8), {'--in-chans': '3'}, (3, 8, 8)),
    'workers': (lambda seen: seen.train.decoding.workers, 0, {'--workers': '1'}, 1),
    'train-crop-mode': (cropped, False, {'--train-crop-mode': 'rrc'}, True),
}
ARCHIVES = ['--test-data', 'FILES/test.npz', '--num-classes', '3']


def words(flags):
    return [word for flag, value in flags.items() for word in (flag, value)]


@pytest.mark.parametrize('command', ['train', 'validate'])
@pytest.mark.parametrize('observe, before, flags, after', CHANGES.values(), ids=CHANGES.keys())
def test_the_flag_decides_what_is_opened(opened, command, observe, before, flags, after):
    for given, expected in ((FOLDER, before), ({**FOLDER, **flags}, after)):
        assert observe(opened(command, [*MODEL, *ARCHIVES, *words(given)])) == expected


@pytest.mark.parametrize('command', ['train', 'validate'])
@pytest.mark.parametrize('flags', [{'--split-seed': '1'}, {'--crop-pct': '0.5'}], ids=['split-seed', 'crop-pct'])
def test_the_flag_decides_which_pixels_validation_sees(opened, command, flags):
    one, again, other = (
        pixels(opened(command, [*MODEL, *ARCHIVES, *words(given)]).val) for given in (FOLDER, FOLDER, FOLDER | flags))
    assert torch.equal(one, again) and one.shape == other.shape and not torch.equal(one, other)


def test_every_way_of_cropping_is_another(opened):
    modes = [training_pixels(opened('train', [*MODEL, *words({**FOLDER, '--train-crop-mode': mode})]))
             for mode in ('resize', 'rrc', 'rkrc', 'rkrr', 'rrc')]
    assert torch.equal(modes.pop(), modes[1])
    assert len({tuple(images.flatten().tolist()) for images in modes}) == 4


@pytest.mark.parametrize('command', ['train', 'validate'])
def test_archives_are_those_named(opened, command):
    argv = [*MODEL, '--dataset', 'FILES/train.npz', '--in-chans', '1', '--val-size', '9', '--num-classes']
    for test, count in (('test', 20), ('more', 30)):
        seen = opened(command, [*argv, '3', '--test-data', f'FILES/{test}.npz'])
        assert (len(seen.test), seen.train.num_classes) == (count, 3)
    with pytest.raises(ValueError, match='no image of class 3, 4'):
        opened(command, [*argv, '5', '--test-data', 'FILES/test.npz'])


@pytest.mark.parametrize('command', ['train', 'validate'])
def test_a_data_set_is_downloaded_only_when_asked_for(opened, command, monkeypatch):
    asked, first = [], []

    @contextlib.contextmanager
    def rank_zero_first(self):
        first.append(self)
        try:
            yield
        finally:
            first.pop()

    def cifar(root, *, train, download):
        asked.append(download)
        assert first  # of several processes one downloads
        if not download:
            raise RuntimeError('Dataset not found')
        return SimpleNamespace(
            data=np.zeros((40, 32, 32, 3), np.uint8), targets=[n % 10 for n in range(40)], classes=list(range(10)))

    monkeypatch.setattr(torchvision.datasets, 'CIFAR10', cifar)
    monkeypatch.setattr(Processes, 'rank_zero_first', rank_zero_first)
    argv = [*MODEL, '--dataset', 'torch/cifar10', '--data-dir', 'FILES', '--val-size', '10']
    for flags, downloads in (([], False), (['--dataset-download'], True), (['--no-dataset-download'], False)):
        asked.clear()
        with contextlib.nullcontext() if downloads else pytest.raises(FileNotFoundError, match='--dataset-download'):
            assert len(opened(command, [*argv, *flags]).train) == 30
        assert set(asked) == {downloads}


@pytest.mark.parametrize('terminal', [True, False], ids=['terminal', 'file'])
def test_a_bar_while_an_archive_is_unpacked(tmp_path, terminal):
    path, out = tmp_path / 'a.npz', io.StringIO()
    np.savez_compressed(path, image=np.zeros((50, 8, 8, 3), np.uint8), label=np.arange(50) % 10)
    with reading_bar(Console(file=out, force_terminal=terminal, width=100)) as progress:
        source = open_archive(path, num_classes=10, mapped=True, cache_dir=tmp_path / 'cache', progress=progress)
    assert ('unpacking' in out.getvalue()) == terminal
    lines = list(source_lines(MixedBatches(source, [source], batch_size=4, synthetic_fraction=0.5, seed=0)))
    for kind, line in zip(('training images', 'synthetic images'), lines, strict=True):
        assert line.startswith(f'{kind}: a.npz: 50 images 3x8x8 uint8')


class Pairs(torch.utils.data.Dataset):
    """Pairs of an image and a label; image n has pixels n."""

    def __init__(self, convert):
        self.convert = convert

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.convert(np.full((8, 8), index, np.uint8)), index % 4


OWN = {
    'tensors': lambda: (torch.arange(40.)[:, None, None, None].expand(40, 1, 8, 8) / 255, torch.arange(40) % 4),
    'float64 arrays': lambda: (np.full((40, 1, 8, 8), np.arange(40)[:, None, None, None] / 255), np.arange(40) % 4),
    'channels last': lambda: (np.full((40, 8, 8, 1), np.arange(40)[:, None, None, None], np.uint8), np.arange(40) % 4),
    'data set of PIL images': lambda: Pairs(Image.fromarray),
    'data set of arrays': lambda: Pairs(lambda pixels: pixels[:, :, None]),
    'data set of arrays, channels first': lambda: Pairs(lambda pixels: pixels[None]),
    'data set of tensors': lambda: Pairs(lambda pixels: torch.from_numpy(pixels)[None] / 255),
}


@pytest.mark.parametrize('images', OWN.values(), ids=OWN.keys())
def test_own_images_become_a_source_and_its_splits(images):
    source, val, test = own_splits(images(), None, images(), DataConfig(val_size=8))
    assert (len(source), len(val), len(test), source.num_classes, source.image_shape) == (32, 8, 40, 4, (1, 8, 8))
    assert val.images.dtype == test.images.dtype == torch.float32
    held_out, trained = val.images.float()[:, 0, 0, 0], to_unit_range(source.take(torch.arange(32))[0])[:, 0, 0, 0]
    assert torch.allclose(torch.cat([held_out, trained]).sort().values, torch.arange(40.) / 255)  # disjoint, complete
    assert torch.equal((held_out * 255).round().long() % 4, val.labels)


@pytest.mark.parametrize('images, message', [
    ((np.zeros((4, 1, 8, 8)),), 'expected .images, labels.'), ((np.zeros((4, 8, 8)), np.zeros(4)), 'own'),
    ((np.full((4, 1, 8, 8), 255.), np.zeros(4)), 'own')], ids=['labels missing', 'no channels', 'bytes as floats'])
def test_own_images_that_are_not_as_expected(images, message):
    with pytest.raises(ValueError, match=message):
        as_source(images)


def test_colours_of_own_images_stay_in_place():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    for images in (pixels, pixels.transpose(0, 3, 1, 2)):
        assert torch.equal(as_source((images, np.arange(6))).take(torch.arange(6))[0],
                           torch.from_numpy(pixels).permute(0, 3, 1, 2))
    palette = as_source(Pairs(lambda pixels: Image.fromarray(pixels + 9).convert('RGB').quantize(4)))
    images, _ = palette.take(torch.arange(40))
    assert images.shape == (40, 3, 8, 8) and images[:, :, 0, 0].tolist() == [[n + 9] * 3 for n in range(40)]
    spectral = np.zeros((6, 16, 8, 8), np.uint8)  # sixteen channels
    assert as_source((spectral, np.arange(6))).image_shape == (16, 8, 8)


def test_an_own_image_that_cannot_be_used_is_named():
    def one_of_floats(pixels):
        return Image.fromarray(pixels.astype(np.float32) if pixels.max() == 5 else pixels)

    with pytest.raises(DataChanged, match='own data, image 5: it is of mode F'):
        as_source(Pairs(one_of_floats)).take(torch.arange(40))


def test_messages_name_flags(tmp_path):
    for name, config, flag in (
            ('folder', DataConfig(data_dir=str(tmp_path / 'x')), 'check --data-dir'),
            (str(tmp_path), DataConfig(), 'give --test-data'), ('torch/cifar10', DataConfig(), 'give --data-dir')):
        with pytest.raises((ValueError, FileNotFoundError), match=flag) as caught:
            open_splits(name, config)
        assert not re.search('data_dir|test_data', str(caught.value))


def test_own_image_files_keep_crops_and_report_when_some_are_held_out(files):
    source = folder_images(files / 'digits' / 'train', decoding=Decoding(channels=1, size=8, train_crop_mode='rrc'))
    train, val, _ = own_splits(source.opened(), None, None, DataConfig(val_size=6))
    assert train.changes_images and hasattr(train, 'prefetch') and (len(train), len(val)) == (24, 6)


def test_a_large_archive_reports_the_images_that_are_left(files, monkeypatch):
    archive = open_archive(files / 'train.npz', num_classes=3, channels=1, mapped=True)
    monkeypatch.setattr('timm_paf.data.datasets.IN_MEMORY', 0)
    train, val, _ = own_splits(archive, None, None, DataConfig(val_size=9))
    assert not isinstance(val.images, torch.Tensor)  # nothing is read into memory
    (line,) = source_lines(MixedBatches(train, batch_size=4, synthetic_fraction=0, seed=0))
    rest = train.class_numbers().bincount().tolist()
    assert line.startswith('training images: train.npz/train: 31 images 1x8x8 uint8') and sum(rest) == 31
    assert f'in all labels, the rarest of 3 classes has {100 * min(rest) / 31:.1f} %' in line


def test_verification_also_checks_the_archives_of_test_images(tmp_path):
    """A flipped bit of a pixel, which only the checksum of the archive shows."""
    pixels = np.random.default_rng(0).integers(0, 256, (70_000, 16, 16, 1), dtype=np.uint8)  # more than 16 MiB
    np.savez(tmp_path / 'test.npz', image=pixels, label=np.arange(70_000) % 3)
    np.savez(tmp_path / 'train.npz', image=pixels[:40], label=np.arange(40) % 3)
    content = bytearray((tmp_path / 'test.npz').read_bytes())
    content[content.find(pixels[50_000].tobytes())] ^= 1
    (tmp_path / 'test.npz').write_bytes(content)
    argv = [*FAST, *MODEL, '--synthetic-fraction', '0', '--output', str(tmp_path), '--dataset',
            str(tmp_path / 'train.npz'), '--test-data', str(tmp_path / 'test.npz'), '--num-classes', '3',
            '--in-chans', '1', '--val-size', '6']
    open_trainer(argv)
    with pytest.raises(ValueError, match=r"test\.npz: 'image' is damaged"):
        open_trainer([*argv, '--verify-data'])


class FrontToBack(torch.utils.data.IterableDataset):
    """What timm's iterable data sets are to a caller: 60 images of three classes, of other pixels each."""
    reader = SimpleNamespace(num_samples=60)

    def __init__(self):
        self.length = 60

    def __len__(self):
        return self.length

    def set_loader_cfg(self, num_workers=None):
        """As in timm, the length changes with the number of workers, whose shares are rounded up."""
        self.length = 16 * math.ceil(60 / max(1, num_workers) / 16) * max(1, num_workers)

    def set_epoch(self, epoch):
        pass

    def __iter__(self):
        for number in range(60):
            yield self.transform(Image.new('L', (8, 8), number * 4)), number % 3


@pytest.mark.parametrize('workers', [0, 2])
def test_a_run_on_a_stream(tmp_path, workers):
    stream = StreamedImages(
        FrontToBack(), name='stream', num_classes=3, decoding=Decoding(channels=1, size=8, workers=workers))
    val = torch.rand(30, 1, 8, 8), torch.arange(30) % 3
    config = parse_train_config([
        *FAST, '--model', 'tiny_norm', '--synthetic-fraction', '0', '--output', str(tmp_path), '--num-classes', '3'])
    trainer = Trainer(config, train=stream, val=val, console=Console(quiet=True))
    trainer.fit()
    assert trainer.progress.update == 12 and all(np.isfinite(row['train_loss']) for row in trainer.progress.rows)
