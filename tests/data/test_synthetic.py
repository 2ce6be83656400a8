"""Synthetic digits: quality, balance, and a cache that is never outdated."""


import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from timm_paf.data import LabelledImages, cached_synthetic_digits, digits_splits, open_archive, sample_synthetic
from timm_paf.data import synthetic as synthetic_module
from timm_paf.data.synthetic import distance_to_nearest


@pytest.fixture(scope='module')
def splits():
    return digits_splits()


@pytest.fixture(scope='module')
def digits(splits):
    return sample_synthetic(splits.train, 1000, seed=0)


def flat(data):
    images = data.images.flatten(1).numpy()
    return images / 255 if images.dtype == np.uint8 else images


def test_labels_are_right_balanced_and_shuffled_and_teach_the_real_task(splits, digits):
    assert digits.images.shape == (1000, 1, 8, 8) and digits.images.dtype == torch.uint8
    assert torch.bincount(digits.labels).tolist() == [100] * 10
    assert len(digits.labels[:100].unique()) == 10
    real = KNeighborsClassifier(3).fit(flat(splits.train), splits.train.labels.numpy())
    assert real.score(flat(digits), digits.labels.numpy()) > 0.97
    taught = KNeighborsClassifier(3).fit(flat(digits), digits.labels.numpy())
    assert taught.score(flat(splits.test), splits.test.labels.numpy()) > 0.94


def test_they_are_new_and_varied(splits, digits):
    def nearest(data):
        return NearestNeighbors(n_neighbors=1).fit(flat(splits.train)).kneighbors(flat(data))[0]

    # copies would be at distance 0; real images that were held out say what a natural distance is
    held_out = nearest(splits.test)
    assert nearest(digits).min() > 0.5 * held_out.min()
    assert 0.5 < np.median(nearest(digits)) / np.median(held_out) < 1.5
    assert len(np.unique(flat(digits), axis=0)) == 1000
    # catches a wrong scale or rounding: means per pixel agree to a few hundredths
    assert np.abs(flat(digits).mean(0) - flat(splits.train).mean(0)).max() < 0.05


def test_seed_decides_the_images(splits):
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (sample_synthetic(splits.train, 50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert first.fingerprint() == again.fingerprint()
    # other images, not the same ones in another order
    assert not set(map(tuple, flat(first).tolist())) & set(map(tuple, flat(other).tolist()))


def colour_images():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.randint(0, 60, (60, 3, 4, 5), generator=generator) + 80 * labels[:, None, None, None]
    return LabelledImages(images.to(torch.uint8), labels, 3, 'colour')


@pytest.mark.parametrize(('n', 'counts'), [(3, [1, 1, 1]), (8, [3, 3, 2])], ids=str)
def test_any_small_set_will_do(n, counts):
    data = sample_synthetic(colour_images(), n, seed=0, components=5, mixtures=2)
    assert data.image_shape == (3, 4, 5)
    assert torch.bincount(data.labels).tolist() == counts
    # classes differ in brightness by 80: a label on the wrong image would show
    assert ((data.images.float().mean((1, 2, 3)) - 30) / 80).round().tolist() == data.labels.tolist()


@pytest.mark.parametrize(
    ('settings', 'message'),
    [({'n': 2}, 'n=2 .* at least one for each of 3'), ({'components': 0}, 'components=0, expected 1 to 60'),
     ({'components': 61}, 'components=61'), ({'components': 20}, 'class 0 has 20 images, but components=20 .* need 21'),
     ({'mixtures': 0}, 'mixtures=0'), ({'mixtures': 21}, 'need 21')], ids=str)
def test_settings_out_of_range(settings, message):
    settings = {'n': 9, 'components': 5, 'mixtures': 2} | settings
    with pytest.raises(ValueError, match=message):
        sample_synthetic(colour_images(), settings.pop('n'), seed=0, **settings)


def test_cache_is_made_once_and_right(tmp_path, splits, monkeypatch):
    path = cached_synthetic_digits(200, 3, tmp_path / 'new' / 'folder')
    with monkeypatch.context() as patch:
        patch.delattr(synthetic_module, 'sample_synthetic')
        assert cached_synthetic_digits(200, 3, tmp_path / 'new' / 'folder') == path
    data = open_archive(path, num_classes=10, channels=1)
    assert data.fingerprint() == sample_synthetic(splits.train, 200, seed=3).fingerprint()
    assert list(path.parent.iterdir()) == [path]


CHANGES = {
    'n': lambda monkeypatch: {'n': 210},
    'seed': lambda monkeypatch: {'seed': 1},
    'revision': lambda monkeypatch: monkeypatch.setattr(synthetic_module, '_REVISION', 999),
    'scikit-learn': lambda monkeypatch: monkeypatch.setattr('sklearn.__version__', '0.0'),
    'training images': lambda monkeypatch: monkeypatch.setattr(
        synthetic_module, 'digits_splits', lambda: digits_splits()._replace(train=digits_splits().test)),
}


@pytest.mark.parametrize('change', CHANGES)
def test_cache_is_not_used_for_something_else(tmp_path, monkeypatch, change):
    first = cached_synthetic_digits(200, 0, tmp_path)
    settings = {'n': 200, 'seed': 0} | (CHANGES[change](monkeypatch) or {})
    second = cached_synthetic_digits(**settings, cache_dir=tmp_path)
    assert second != first
    assert first.exists() and second.exists()


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(OSError, match=r'cannot write to the cache .*file .*set TIMM_PAF_CACHE'):
        cached_synthetic_digits(20, 0, tmp_path / 'file')


@pytest.mark.parametrize('chunk', [7, 4096])
def test_distance_to_the_nearest_image(splits, chunk):
    data = colour_images()
    images = torch.randint(0, 256, (9, 3, 4, 5), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = distance_to_nearest(torch.cat([images, data.images[50:51], data.images[3:4] + 1]), data, chunk=chunk)
    expected = (images[:, None].double() - data.images.double()).square().mean((2, 3, 4)).sqrt().amin(1) / 255
    torch.testing.assert_close(found[:9], expected, rtol=1e-14, atol=0)
    # an equal image is at exactly 0, and one grey level away in every pixel at exactly 1/255
    assert found[9] == 0 and found[10] == 1 / 255
    # float images are compared in 8 bits; of held-out digits none is as near as make_synthetic.py's default threshold
    train, test = ((part.images * 255).round().to(torch.uint8) for part in (splits.train, splits.test))
    assert distance_to_nearest(train[:5], splits.train).tolist() == [0] * 5
    assert distance_to_nearest(test, splits.train).min() > 0.02
    # float32 rounds the squares of 3 * 64 * 64 bright pixels: images one level apart in one pixel would look equal
    other = (image := torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)).clone()
    other[0, 0, 0, 0] = 254
    found = distance_to_nearest(other, LabelledImages(image, torch.tensor([0]), 1, 'white'), chunk=chunk)
    assert found.item() == pytest.approx((3 * 64 * 64) ** -0.5 / 255, rel=1e-14)
