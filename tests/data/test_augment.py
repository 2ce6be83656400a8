"""Batched augmentation, against torchvision and against loops over images."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import functional as tv

from timm_paf.data import Augment
from timm_paf.data.augment import blank, jitter, paste


def images(dtype=torch.float32, count=64, channels=3, height=6, width=5):
    values = torch.randint(1, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(1))
    return values.to(dtype) if dtype == torch.uint8 else values.to(dtype) / 255


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('dtype', [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize('padding', [0, 2, 9])
def test_shift_equals_a_loop_over_crops(dtype, padding):
    x = images(dtype)
    shifted = Augment(crop_padding=padding)(x, generator=generator())
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, len(x), 1), generator=generator())[..., 0].tolist()
    for image, got, top, left in zip(x, shifted, tops, lefts, strict=True):
        padded = F.pad(image, (padding,) * 4)
        assert torch.equal(got, padded[:, top:top + 6, left:left + 5])
    assert shifted.dtype == dtype and shifted.shape == x.shape


def test_shift_uses_every_offset_equally():
    # one bright pixel in the middle shows where each image went
    x = torch.zeros(9000, 1, 7, 7)
    x[:, :, 3, 3] = 1
    shifted = Augment(crop_padding=1)(x, generator=generator())
    counts = shifted.sum((0, 1))
    assert counts[2:5, 2:5].sum() == 9000
    chi2 = float(((counts[2:5, 2:5] - 1000) ** 2 / 1000).sum())
    assert chi2 < 8 + 5 * 4


def test_flip_mirrors_whole_images_half_of_the_time():
    x = images(count=2000)
    flipped = Augment(hflip=True)(x, generator=generator())
    same = (flipped == x).flatten(1).all(1)
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert abs(int(mirrored.sum()) - 1000) < 5 * 500**0.5


def test_shift_comes_before_flip():
    x = images()
    shared = generator()
    expected = Augment(hflip=True)(Augment(crop_padding=2)(x, generator=shared), generator=shared)
    assert torch.equal(Augment(crop_padding=2, hflip=True)(x, generator=generator()), expected)


def test_jitter_factors_are_uniform_around_one():
    factors = Augment(color_jitter=0.4).draw(5000, (3, 6, 5), generator=generator())['jitter']
    assert factors.shape == (5000, 3) and factors.min() >= 0.6 and factors.max() <= 1.4
    standard_error = 0.8 / 12**0.5 / 5000**0.5
    assert ((factors.mean(0) - 1).abs() < 5 * standard_error).all()
    assert Augment(color_jitter=3.).draw(5000, (3, 6, 5), generator=generator())['jitter'].min() >= 0


def test_cutout_is_a_square_around_any_pixel():
    x = torch.ones(20000, 1, 7, 9)
    holes = (Augment(cutout=3)(x, generator=generator()) == 0)[:, 0]
    # a corner is hit by four centres of 63, a pixel in the middle by nine
    expected = torch.full((7, 9), 9.)
    expected[[0, -1]] = 6
    expected[:, [0, -1]] = 6
    for row in (0, -1):
        for column in (0, -1):
            expected[row, column] = 4
    share = expected / 63
    assert ((holes.float().mean(0) - share).abs() < 5 * (share * (1 - share) / 20000).sqrt()).all()
    assert holes.sum((1, 2)).unique().tolist() == [4, 6, 9]


@pytest.mark.parametrize('probability', [0.25, 1.])
def test_erasing_takes_as_often_and_as_much_as_it_says(probability):
    x = torch.ones(4000, 1, 40, 40)
    area = (Augment(erase_prob=probability)(x, generator=generator()) == 0).float().mean((1, 2, 3))
    erased = area > 0
    assert abs(int(erased.sum()) - 4000 * probability) <= 5 * (4000 * probability * (1 - probability)) ** 0.5
    taken = area[erased]
    # rounded to whole pixels and, for the longest, cut at the image: mean (0.02 + 1/3) / 2 up to a percent
    assert taken.min() > 0.01 and taken.max() < 0.35
    assert abs(float(taken.mean()) - 0.1767) < 0.01 + 5 * 0.09 / len(taken) ** 0.5


@pytest.mark.parametrize('alpha', [0.3, 4.])
def test_cutmix_changes_labels_as_much_as_pixels(alpha):
    count, size = 3000, 32
    x = torch.arange(count).float()[:, None, None, None].expand(-1, 1, size, size) / count
    target = torch.nn.functional.one_hot(torch.arange(count) % 7, 7).float()
    mixed, labels = Augment(cutmix=alpha).labelled(x, target, generator=generator())
    own = (mixed == x).flatten(1).float().mean(1)
    # what is not the image's own comes from the next one
    assert ((mixed == x) | (mixed == x.roll(-1, 0))).all()
    torch.testing.assert_close(labels, own[:, None] * target + (1 - own[:, None]) * target.roll(-1, 0))
    # before it is cut at the border the pasted share s is Beta(alpha, alpha): a side of sqrt(s) keeps at an even
    # centre 1 - sqrt(s) / 4 of its length on average
    share = torch.distributions.Beta(alpha, alpha).sample((200_000,))
    expected = float((share.sqrt() * (1 - share.sqrt() / 4)).square().mean())
    assert abs(float(1 - own.mean()) - expected) < 5 * 0.3 / count**0.5 + 0.01


EVERYTHING = Augment(crop_padding=2, hflip=True, color_jitter=0.3, cutout=2, erase_prob=0.5, cutmix=1.)


def test_rows_of_the_draws_can_be_used_apart():
    """What is done to an image does not depend on which others are at hand."""
    x = images(torch.uint8)
    draws = EVERYTHING.draw(len(x), x.shape[1:], generator=generator())
    whole, some = EVERYTHING.apply(x, draws), torch.tensor([5, 60, 5, 0])
    assert torch.equal(EVERYTHING.apply(x[some], {name: rows[some] for name, rows in draws.items()}), whole[some])


@pytest.mark.gpu
def test_results_are_the_same_on_a_gpu():
    x, target = images(torch.uint8), torch.eye(64)
    for augment in (EVERYTHING, replace(EVERYTHING, color_jitter=0.)):
        draws = augment.draw(len(x), x.shape[1:], generator=generator())
        results = []
        for device in ('cpu', 'cuda'):
            here = {name: rows.to(device) for name, rows in draws.items()}
            y, labels = augment.apply(x.to(device), here), target.to(device)
            results.append(augment.mix(y, y.roll(-1, 0), labels, labels.roll(-1, 0), here))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other.cpu(), atol=1e-6 if augment.color_jitter else 0, rtol=0)


@pytest.mark.parametrize('channels', [3, 1])
def test_jitter_equals_torchvision(channels):
    x, strength = images(count=12, channels=channels), 2 * torch.rand(12, 3, generator=generator())
    expected = torch.stack([
        tv.adjust_contrast(tv.adjust_brightness(image, b), c)
        for image, (b, c, _) in zip(x, strength.tolist(), strict=True)])
    if channels == 3:
        expected = torch.stack([
            tv.adjust_saturation(image, s) for image, s in zip(expected, strength[:, 2].tolist(), strict=True)])
    torch.testing.assert_close(jitter(x, strength), expected, atol=1e-6, rtol=0)


# inside, over each border, over all of them, empty, outside
BOXES = torch.tensor([
    [1, 1, 3, 4], [-2, 1, 2, 3], [4, 1, 9, 3], [1, -3, 3, 2], [1, 3, 3, 8], [-1, -1, 7, 7], [2, 2, 2, 2], [0, 0, 0, 0],
    [8, 8, 9, 9], [0, 0, 6, 5], [5, 4, 6, 5], [3, 0, 4, 5],
])


@pytest.mark.parametrize('dtype', [torch.float32, torch.uint8], ids=str)
def test_boxes_equal_a_loop_over_pixels(dtype):
    x = images(dtype, count=12)
    other = x.flip(0)
    emptied, kept = x.clone(), x.clone()
    for number, (top, left, bottom, right) in enumerate(BOXES.tolist()):
        for row in range(6):
            for column in range(5):
                if top <= row < bottom and left <= column < right:
                    emptied[number, :, row, column] = 0
                    kept[number, :, row, column] = other[number, :, row, column]
    assert torch.equal(blank(x, BOXES), emptied)
    pasted, own = paste(x, other, BOXES)
    assert torch.equal(pasted, kept) and pasted.dtype == dtype
    # the share is counted in pixels, so it must agree with what can be seen
    assert torch.equal(own, (emptied[:, 0] != 0).float().mean((1, 2)))


@pytest.mark.parametrize(
    ('name', 'value'),
    [('color_jitter', -0.1), ('color_jitter', float('nan')), ('erase_prob', 1.1), ('cutmix', float('inf')),
     ('cutout', 1.5), ('crop_padding', -1)], ids=str)
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=f'got {name}='):
        Augment(**{name: value})
    with pytest.raises(ValueError, match='without labels'):
        Augment(cutmix=1.)(images(), generator=generator())
