"""Images and labels in files of their own: which labels belong to which images, and what a bare file can be."""

import numpy as np
import pytest
import torch

from timm_paf.data import ConcatenatedImages, open_archive, open_archives
from timm_paf.data.headers import find_labels

NHWC = np.random.RandomState(0).randint(0, 256, (6, 4, 4, 3), dtype=np.uint8)
NCHW = np.ascontiguousarray(NHWC.transpose(0, 3, 1, 2))
LABEL = np.array([0, 1, 2, 2, 1, 0])

NAMES = {
    'X.npy': 'Y.npy',
    'x_train.npy': 'y_train.npy',
    'data.npy': 'targets.npy',
    'Images-part2.npy': 'Labels-part2.npy',
    'cifar_ddpm_improvedddpm_sorted_images.bin': 'cifar_ddpm_improvedddpm_sorted_labels.npy',
    'part0.npy': 'part0_labels.npy',
    'images0.npy': 'images0_label.npy',
    'mixed_x.npy': 'mixed_y.npy',
}


@pytest.mark.parametrize('images', NAMES)
def test_labels_are_found_by_name(tmp_path, images):
    (tmp_path / NAMES[images]).touch()
    (tmp_path / 'other_labels.npy').touch()
    assert find_labels(tmp_path / images) == tmp_path / NAMES[images]


def test_labels_that_are_not_there_or_twice(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'images\.npy: no file with labels, expected labels\.npy or '):
        find_labels(tmp_path / 'images.npy')
    for name in ('labels.npy', 'images_labels.npy'):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r'labels\.npy or images_labels\.npy; keep one'):
        find_labels(tmp_path / 'images.npy')


def npy(folder, images, labels=LABEL):
    np.save(folder / 'images.npy', images)
    np.save(folder / 'labels.npy', labels)
    return folder / 'images.npy'


def bare(folder, images, labels=LABEL):
    (folder / 'images.bin').write_bytes(images.tobytes())
    np.save(folder / 'labels.npy', labels)
    return folder / 'images.bin'


GOOD = {
    'npy NHWC': (lambda f: npy(f, NHWC), {}),
    'folder': (lambda f: npy(f, NHWC).parent, {}),
    'bin': (lambda f: bare(f, NHWC), {}),
    'bin NCHW': (lambda f: bare(f, NCHW), {'layout': 'NCHW'}),
    'bin folder': (lambda f: bare(f, NHWC).parent, {}),
}


@pytest.mark.parametrize('mapped', [True, False], ids=['on disk', 'in memory'])
@pytest.mark.parametrize('case', GOOD)
def test_pairs(tmp_path, case, mapped):
    make, options = GOOD[case]
    source = open_archive(make(tmp_path), num_classes=3, mapped=mapped, cache_dir=tmp_path / 'cache', **options)
    images, labels = source.take(torch.tensor([5, 0, 2]))
    images = images if images.dtype == torch.uint8 else images * 255
    assert np.array_equal(images, NCHW[[5, 0, 2]]) and labels.tolist() == [0, 0, 2]


def test_gray_bin_and_named_labels(tmp_path):
    np.save(tmp_path / 'of_them.npy', LABEL)
    (tmp_path / 'gray.bin').write_bytes(NHWC[..., 0].tobytes())
    source = open_archive(tmp_path / 'gray.bin', num_classes=3, labels=tmp_path / 'of_them.npy')
    assert source.image_shape == (1, 4, 4)
    assert np.array_equal(source.take(torch.arange(6))[0][:, 0], NHWC[..., 0])


BAD = {
    'bin cut short': (lambda f: bare(f, NHWC[:5]), {}, '240 bytes for 6 labels, which is 40 bytes per image'),
    'bin of other channels': (lambda f: bare(f, NHWC), {'channels': 1}, 'expected square images with 1 channels'),
    'bin with HWCN': (lambda f: bare(f, NHWC), {'layout': 'HWCN'}, 'HWCN'),
    'label out of range': (lambda f: npy(f, NHWC, LABEL + 1), {}, r'labels\.npy: has values from 1 to 3.*index 2'),
    'npy cut short': (lambda f: cut(npy(f, NHWC)), {}, r'images\.npy: holds 278 bytes .* 288'),
    'objects': (lambda f: npy(f, NHWC, np.array([{}] * 6)), {}, r'labels\.npy: is of dtype object: pickled objects'),
    'two pairs in a folder': (lambda f: bare(npy(f, NHWC).parent, NHWC).parent, {}, 'holds images.npy and images.bin'),
    'a pickle': (lambda f: pickled(f), {}, 'see recipes/convert_pickle.py'),
}


def cut(path, count=10):
    path.write_bytes(path.read_bytes()[:-count])
    return path


def pickled(folder):
    (folder / 'ti.pickle').write_bytes(b'\x80\x04N.')
    return folder / 'ti.pickle'


@pytest.mark.parametrize('case', BAD)
def test_bad_pairs(tmp_path, case):
    make, options, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        open_archive(make(tmp_path), num_classes=3, **options)
    assert str(tmp_path) in str(caught.value) and '\n' not in str(caught.value)


def test_a_folder_of_parts_is_opened_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        np.savez(tmp_path / f'part{number}.npz', image=NHWC, label=np.full(6, number))
    (tmp_path / '.part3.npz.1.tmp').write_text('unfinished')
    source = open_archives([tmp_path], num_classes=11)
    assert isinstance(source, ConcatenatedImages) and source.name == 'part1.npz+part2.npz+part10.npz'
    assert source.take(torch.tensor([0, 6, 12]))[1].tolist() == [1, 2, 10]
