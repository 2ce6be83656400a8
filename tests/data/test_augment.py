"""Batched augmentation against a loop over images."""

import pytest
import torch
import torch.nn.functional as F

from timm_paf.data import Augment, random_hflip, random_shift


def images(dtype=torch.float32, count=64, channels=3, height=6, width=5):
    values = torch.randint(1, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(1))
    return values.to(dtype) if dtype == torch.uint8 else values.to(dtype) / 255


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('dtype', [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize('padding', [0, 1, 2, 4, 9])
def test_shift_equals_a_loop_over_crops(dtype, padding):
    x = images(dtype)
    shifted = random_shift(x, padding, generator=generator())
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, len(x), 1), generator=generator())[..., 0].tolist()
    for image, got, top, left in zip(x, shifted, tops, lefts, strict=True):
        padded = F.pad(image, (padding,) * 4)
        assert torch.equal(got, padded[:, top:top + 6, left:left + 5])
    assert shifted.dtype == dtype and shifted.shape == x.shape


def test_shift_uses_every_offset_equally():
    # one bright pixel in the middle shows where each image went
    x = torch.zeros(9000, 1, 7, 7)
    x[:, :, 3, 3] = 1
    shifted = random_shift(x, 1, generator=generator())
    counts = shifted.sum((0, 1))
    assert counts[2:5, 2:5].sum() == 9000
    chi2 = float(((counts[2:5, 2:5] - 1000) ** 2 / 1000).sum())
    assert chi2 < 8 + 5 * 4


def test_flip_mirrors_whole_images_half_of_the_time():
    x = images(count=2000)
    flipped = random_hflip(x, generator=generator())
    same = (flipped == x).flatten(1).all(1)
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert abs(int(mirrored.sum()) - 1000) < 5 * 500**0.5


def test_default_does_nothing():
    x = images()
    assert torch.equal(Augment()(x, generator=generator()), x)


def test_shift_comes_before_flip():
    x = images()
    shared = generator()
    expected = random_hflip(random_shift(x, 2, generator=shared), generator=shared)
    assert torch.equal(Augment(crop_padding=2, hflip=True)(x, generator=generator()), expected)


def test_strided_images_are_the_same_images():
    x = images()
    strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(random_shift(strided, 2, generator=generator()), random_shift(x, 2, generator=generator()))


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    Augment(crop_padding=1, hflip=True)(images(), generator=generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('padding', [-1, 1.5, True, None, '1'], ids=repr)
def test_padding_out_of_range(padding):
    with pytest.raises(ValueError, match='crop_padding'):
        Augment(crop_padding=padding)
