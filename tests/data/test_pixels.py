"""Changes to whole batches, against torchvision and against loops over images."""

import pytest
import torch
from torchvision.transforms import functional as tv

from timm_paf.data.pixels import blank, jitter, mirror, paste


def images(count=12, channels=3, height=6, width=5, seed=0):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def factors(count=12, seed=1):
    return 2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('channels', [3, 1])
def test_jitter_equals_torchvision(channels):
    x, strength = images(channels=channels), factors()
    expected = torch.stack([
        tv.adjust_contrast(tv.adjust_brightness(image, b), c)
        for image, (b, c, _) in zip(x, strength.tolist(), strict=True)])
    if channels == 3:
        expected = torch.stack([
            tv.adjust_saturation(image, s) for image, s in zip(expected, strength[:, 2].tolist(), strict=True)])
    torch.testing.assert_close(jitter(x, strength), expected, atol=1e-6, rtol=0)


def test_jitter_by_one_changes_nothing():
    x = images()
    torch.testing.assert_close(jitter(x, torch.ones(12, 3)), x, atol=1e-7, rtol=0)


# inside, over each border, over all of them, empty, outside
BOXES = torch.tensor([
    [1, 1, 3, 4], [-2, 1, 2, 3], [4, 1, 9, 3], [1, -3, 3, 2], [1, 3, 3, 8], [-1, -1, 7, 7], [2, 2, 2, 2], [0, 0, 0, 0],
    [8, 8, 9, 9], [0, 0, 6, 5], [5, 4, 6, 5], [3, 0, 4, 5],
])


def in_box(box, row, column):
    top, left, bottom, right = box.tolist()
    return top <= row < bottom and left <= column < right


@pytest.mark.parametrize('dtype', [torch.float32, torch.uint8], ids=str)
def test_boxes_equal_a_loop_over_pixels(dtype):
    x, other = ((values * 254 + 1).to(dtype) for values in (images(), images(seed=2)))
    emptied, kept = x.clone(), x.clone()
    for number, box in enumerate(BOXES):
        for row in range(6):
            for column in range(5):
                if in_box(box, row, column):
                    emptied[number, :, row, column] = 0
                    kept[number, :, row, column] = other[number, :, row, column]
    assert torch.equal(blank(x, BOXES), emptied)
    pasted, own = paste(x, other, BOXES)
    assert torch.equal(pasted, kept) and pasted.dtype == dtype
    # the share is counted in pixels, so it must agree with what can be seen
    assert torch.equal(own, (emptied[:, 0] != 0).float().mean((1, 2)))


def test_mirror_changes_the_chosen_ones_alone():
    x, chosen = images(), torch.arange(12) % 3 == 0
    for image, got, flipped in zip(x, mirror(x, chosen), chosen.tolist(), strict=True):
        assert torch.equal(got, tv.hflip(image) if flipped else image)
