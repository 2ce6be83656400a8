"""Images decoded during training: the same batches for any number of workers, and an error for a broken image."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from timm_paf.data import Augment, DataChanged, Decoding, LabelledImages, MixedBatches
from timm_paf.data.decoded import DecodedImages, folder_images
from timm_paf.data.streamed import StreamedImages

SIZE = 16


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Three classes of ten images of many sizes; the red channel says which image it is, green grows to the right."""
    root = tmp_path_factory.mktemp('images')
    for number in range(30):
        pixels = np.zeros((18 + number, 40 - number % 7, 3), np.uint8)
        pixels[..., 0] = number * 8
        pixels[..., 1] = np.linspace(0, 255, pixels.shape[1])
        (root / f'class{number // 10}').mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / f'class{number // 10}' / f'{number:02d}.png')
    return root


def opened(folder, **settings):
    return folder_images(folder, decoding=Decoding(size=SIZE, **{'workers': 0, **settings})).opened()


def numbers(images):
    """Which images these are."""
    return (images[:, 0].float().mean((1, 2)) * (1 if images.dtype == torch.uint8 else 255) / 8).round().long()


def mixed(source, **settings):
    synthetic = LabelledImages(torch.full((40, 3, SIZE, SIZE), 255, dtype=torch.uint8), torch.zeros(40).long(), 3, 'w')
    return MixedBatches(source, synthetic, batch_size=12, synthetic_fraction=1 / 3, seed=0, **settings)


@pytest.mark.parametrize('mode', ['rrc', 'resize'])
def test_batches_do_not_depend_on_workers_or_on_where_the_epoch_is_entered(folder, mode):
    whole = list(mixed(opened(folder, train_crop_mode=mode)).epoch(1))
    resumed = list(mixed(opened(folder, train_crop_mode=mode, workers=2)).epoch(1, 1))
    seen = []
    for batch in whole:
        assert int(batch.synthetic.sum()) == (4 if len(batch) == 12 else 3)
        seen += numbers(batch.x[~batch.synthetic]).tolist()
        assert torch.equal(numbers(batch.x[~batch.synthetic]) // 10, batch.y[~batch.synthetic])
    assert sorted(seen) == list(range(30))
    for one, other in zip(whole[1:], resumed, strict=True):
        assert torch.equal(one.x, other.x) and torch.equal(one.target, other.target)


def test_random_crops_are_new_in_each_epoch(folder):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()

    def green(epoch, mode):
        source = opened(folder, train_crop_mode=mode)
        images = torch.cat([batch.x[~batch.synthetic] for batch in mixed(source).epoch(epoch)])
        return images[numbers(images).argsort(), 1]

    assert torch.equal(green(0, 'resize'), green(1, 'resize'))
    first, second = green(0, 'rrc'), green(1, 'rrc')
    assert (first != second).flatten(1).any(1).float().mean() > 0.9
    # images are cropped apart from each other, too: not one crop for the whole batch
    assert len({row.tolist()[0] for row in first[:, 0, :1]}) > 10
    # global random states are left alone
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


def test_ranks_together_see_what_one_process_sees(folder):
    settings = {'real_augment': Augment(crop_padding=2, cutmix=1.)}
    alone = mixed(opened(folder), **settings).epoch(2)
    shares = zip(*(mixed(opened(folder), **settings, rank=rank, world_size=2).epoch(2) for rank in (0, 1)), strict=True)

    def rows(batch):
        return torch.cat([batch.x.flatten(1), batch.target], 1).tolist()

    for whole, (first, second) in zip(alone, shares, strict=True):
        assert sorted(rows(first) + rows(second)) == sorted(rows(whole))


@pytest.mark.parametrize('workers', [0, 1])
def test_unreadable_image_is_named_and_not_replaced(tmp_path, folder, workers):
    broken = shutil.copytree(folder, tmp_path / 'copy') / 'class0' / '03.png'
    source = opened(tmp_path / 'copy', workers=workers)
    source.dataset._stamps[3] = len(content := broken.read_bytes()[:40]), 10**9  # as if it were broken from the start
    broken.write_bytes(content)
    os.utime(broken, (1, 1))
    with pytest.raises(DataChanged, match=r'03\.png: the image cannot be read') as caught:
        list(mixed(source).epoch(0))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('settings', [
    {'channels': 2}, {'size': 0}, {'workers': -1}, {'crop_pct': 0}, {'crop_pct': 1.5}], ids=str)
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match='='.join(str(part) for part in next(iter(settings.items())))):
        Decoding(**settings)
    with pytest.raises(ValueError, match='labels from 0 to 2, expected 0 to 1'):
        DecodedImages(None, name='images', num_classes=2, labels=torch.arange(3), decoding=Decoding())


class FrontToBack(torch.utils.data.IterableDataset):
    """What timm's iterable data sets are to a caller."""

    def __init__(self, count):
        self.count, self.epochs = count, []
        self.set_epoch = self.epochs.append

    def __len__(self):
        return self.count

    def __iter__(self):
        for number in range(self.count):
            yield self.transform(Image.new('RGB', (SIZE, SIZE), (number * 8, 0, 0))), number % 3


def streamed(count=30, num_classes=3):
    return StreamedImages(
        FrontToBack(count), name='stream', num_classes=num_classes,
        decoding=Decoding(size=SIZE, crop_pct=1., train_crop_mode='resize', workers=0))


def test_stream_gives_exact_counts_and_goes_through_passes():
    source = streamed()
    seen = []
    for epoch in range(2):
        got = list(mixed(source).epoch(epoch))
        assert [(len(batch), int(batch.synthetic.sum())) for batch in got] == [(12, 4)] * 3 + [(9, 3)]
        for batch in got:
            real = batch.x[~batch.synthetic]
            assert torch.equal(numbers(real) % 3, batch.y[~batch.synthetic])
            seen += numbers(real).tolist()
    assert sorted(seen) == sorted(2 * list(range(30)))
    assert len(set(source.dataset.epochs)) == len(source.dataset.epochs) >= 2  # each pass has another order


def test_stream_is_not_asked_by_index_and_refuses_wrong_labels():
    with pytest.raises(ValueError, match='only be read from front to back'):
        streamed().take(torch.tensor([0]))
    with pytest.raises(DataChanged, match='label 2, expected 0 to 1'):
        streamed(num_classes=2).loaded(name='val')
    assert numbers(streamed().loaded(name='val').images).tolist() == list(range(30))
    with pytest.raises(DataChanged, match='no images'):
        streamed(0).loaded(name='val')
