"""Class names: every source has them where its format has them, and numbers follow names."""

import numpy as np
import pytest
import torch
from PIL import Image

from timm_paf.data import (
    ConcatenatedImages,
    ImagesWithout,
    LabelledImages,
    all_labels,
    check_classes,
    digits_splits,
    match_classes,
    names_of_classes,
    open_archive,
    open_archives,
    sample_report,
    sample_synthetic,
    save_archive,
)

NAMES = ('cat', 'dog', 'eel')
BYTES = torch.arange(6 * 48, dtype=torch.uint8).reshape(6, 3, 4, 4)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
E, E2 = 'b\u00e9', 'be\u0301'  # the same text, composed and decomposed


def images(names=NAMES, labels=LABELS):
    return LabelledImages(BYTES, labels, len(names), 'some', tuple(names))


def folders(root, names=NAMES, labels=LABELS):
    """One image per label; the colour says which."""
    for number, label in enumerate(labels.tolist()):
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(BYTES[number].permute(1, 2, 0).numpy()).save(root / names[label] / f'{number}.png')
    return root


def npz(root):
    save_archive(root / 'a.npz', images())
    return root / 'a.npz'


def pair(root):
    np.save(root / 'images.npy', BYTES.permute(0, 2, 3, 1).numpy())
    np.save(root / 'labels.npy', LABELS.numpy())
    (root / 'class_names.txt').write_text('cat\ndog\neel\n')
    return root / 'images.npy'


SOURCES = {
    'in memory': lambda root: images(),
    'part of it': lambda root: images().subset(torch.arange(6), name='part'),
    'without some': lambda root: ImagesWithout(images(), torch.tensor([1]), name='rest'),
    'concatenated': lambda root: ConcatenatedImages([images(), images()]),
    'folders': lambda root: open_archive(folders(root)),
    'npz': lambda root: open_archive(npz(root)),
    'npz on disk': lambda root: open_archive(npz(root), mapped=True),
    'npy pair': lambda root: open_archive(pair(root)),
}


@pytest.mark.parametrize('source', SOURCES)
def test_class_names(tmp_path, source):
    source = SOURCES[source](tmp_path)
    assert source.class_names == NAMES and source.num_classes == 3


def test_names_of_the_digits_reach_synthetic_ones():
    train = digits_splits().train
    assert sample_synthetic(train, 10, seed=0).class_names == train.class_names == tuple('0123456789')


# names of the source, names of the others (or their number) -> the new number of each class, or what the error names
MATCHES = {
    'the same': (NAMES, NAMES, [0, 1, 2]),
    'another order': (NAMES, ('eel', 'cat', 'dog'), [1, 2, 0]),
    'some are missing': (NAMES, ('ant', 'cat', 'dog', 'eel', 'fox'), [1, 2, 3]),
    'numbers as text and as numbers': (('1', '10', '2'), ('1', '2', '10'), [0, 2, 1]),
    'leading zeros': (('01', '02', '10'), ('1', '2', '10'), [0, 1, 2]),
    'composed and decomposed': (('a', E2, 'c'), ('a', E, 'c'), [0, 1, 2]),
    'both forms are classes': ((E2, E, 'c'), (E, E2, 'c'), [1, 0, 2]),
    'numbers for others without names': (('0', '2', '4'), 5, [0, 2, 4]),
    'no names': (None, NAMES, [0, 1, 2]),
    'others without names': (NAMES, 3, [0, 1, 2]),
    'a foreign class': (NAMES, ('ant', 'cat', 'dog'), 'eel'),
    'capital letters': (('Cat', 'dog', 'eel'), NAMES, 'Cat'),
    'a number too high': (('1', '2', '3'), 3, 'class 3'),
    'no names and another number': (None, ('cat', 'dog'), 'has 3 classes.* have 2'),
    'others without names and of another number': (NAMES, 4, 'has 3 classes.* have 4'),
}


@pytest.mark.parametrize('kind', ['in memory', 'folders', 'concatenated'])
@pytest.mark.parametrize('case', MATCHES)
def test_numbers_follow_names(tmp_path, case, kind):
    own, others, expected = MATCHES[case]
    if kind == 'folders' and own is None:
        pytest.skip('folders have names')
    source = LabelledImages(BYTES, LABELS, 3, 'some', own)
    if kind == 'folders':
        names = tuple(sorted(own, key=lambda name: (len(name), name)) if own[0].isdigit() else own)
        source = open_archive(folders(tmp_path, own))
        expected = expected if isinstance(expected, str) else [expected[own.index(name)] for name in names]
        assert source.class_names == names
    elif kind == 'concatenated':
        source = ConcatenatedImages([source, source])
    before = source.take(torch.arange(6))
    wanted = dict(names=None, num_classes=others) if isinstance(others, int) else dict(names=others)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected) as caught:
            match_classes(source, **wanted)
        assert '\n' not in str(caught.value)
        return
    matched = match_classes(source, **wanted)
    x, y = matched.take(torch.arange(6))
    assert torch.equal(x, before[0]) and y.tolist() == [expected[label] for label in before[1].tolist()]
    assert torch.equal(all_labels(matched)[:6], y)
    assert matched.num_classes == (others if isinstance(others, int) else len(others))
    counts = sample_report(matched).class_counts
    assert counts == tuple(torch.bincount(all_labels(matched), minlength=matched.num_classes).tolist())


def test_soft_labels_follow_names():
    soft = LabelledImages(BYTES, torch.tensor([[0.5, 0.3, 0.2]] * 6), 3, 'soft', NAMES)
    matched = match_classes(soft, ('eel', 'ant', 'cat', 'dog'))
    torch.testing.assert_close(matched.labels[0], torch.tensor([0.2, 0., 0.5, 0.3]))


def test_archives_follow_the_names_of_the_real_images_and_of_each_other(tmp_path):
    first, second = folders(tmp_path / 'first'), folders(tmp_path / 'second', ('dog', 'cat', 'eel'))
    whole = open_archives([first, second])
    for source in (whole.parts[1], open_archives([second], num_classes=3, class_names=NAMES)):
        # the colours of 'dog' in the second folder are those of number 0
        for index in range(6):
            image, label = source.take(torch.tensor([index]))
            number = next(n for n in range(6) if torch.equal(image[0], BYTES[n]))
            assert NAMES[label] == ('dog', 'cat', 'eel')[LABELS[number]]
    with pytest.raises(ValueError, match='second: the training images do not have its class cat, but dog, eel, fox'):
        open_archives([second], class_names=('dog', 'eel', 'fox'))
    np.savez(tmp_path / 'plain.npz', image=BYTES.permute(0, 2, 3, 1).numpy(), label=LABELS.numpy())
    with pytest.raises(ValueError, match=r'plain\.npz: .* give num_classes'):
        open_archive(tmp_path / 'plain.npz')


@pytest.mark.parametrize('labels, message', [
    ([0] * 6, r'all 6 images are of one class, cat \(number 0\)'), ([0, 0, 0, 2, 2, 2], r'class dog \(number 1\)')],
    ids=['one class', 'an empty class'])
def test_classes_of_training_images(labels, message):
    with pytest.raises(ValueError, match=message):
        check_classes(images(labels=torch.tensor(labels)))
    check_classes(images())


@pytest.mark.parametrize('classes, names', [
    (['b', 'a'], ('b', 'a')), ({'x': 1, 'y': 0}, ('y', 'x')), ([('tench', 'Tinca tinca'), ('shark',)], (
        'tench, Tinca tinca', 'shark')), ({'x': 3}, None), ([], None), (None, None)], ids=str)
def test_names_as_others_give_them(classes, names):
    assert names_of_classes(classes) == names


@pytest.mark.parametrize('names', [('a', 'b'), ('a', 'a', 'b'), ['a', 'b', 'c'], (0, 1, 2)], ids=str)
def test_names_that_are_none(names):
    with pytest.raises(ValueError, match=r'some: got .*class.names'):
        LabelledImages(BYTES, LABELS, 3, 'some', names)
