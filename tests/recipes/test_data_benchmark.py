"""The data benchmark on a small archive: what it makes, what it prints, and that its readers give what they say."""
import itertools
import json

import numpy as np
import pytest
import torch

import timm_paf.data
from recipes.benchmarks import data as recipe
from timm_paf.data import open_archive


def test_the_archive_is_a_plain_sorted_one(tmp_path):
    path = tmp_path / 'a.npz'
    recipe.make_archive(path, 1003)
    held = np.load(path)
    assert held['image'].shape == (1003, 32, 32, 3) and held['image'].dtype == np.uint8
    assert (np.diff(held['label']) >= 0).all() and np.bincount(held['label']).min() >= 100
    images, labels = recipe.mapped(path)
    assert np.array_equal(images, held['image']) and np.array_equal(labels, held['label'])
    x, y = open_archive(path, num_classes=10, mapped=True).take(torch.tensor([1002, 5]))
    assert np.array_equal(x.permute(0, 2, 3, 1), held['image'][[1002, 5]]) and y.tolist() == [9, 0]


def test_every_reader_gives_augmented_batches(tmp_path):
    path = tmp_path / 'a.npz'
    recipe.make_archive(path, 200)
    recipe.make_folder(path, tmp_path / 'images', 50)
    readers = [
        recipe.our_batches(path, 16), recipe.our_batches(tmp_path / 'images', 16),
        *(recipe.peer_batches(recipe.Archive(path, loaded=loaded), 16) for loaded in (False, True))]
    for reader in readers:
        x, y = next(reader)
        assert x.shape == (16, 3, 32, 32) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
        assert len(y.unique()) > 2  # shuffled: the archive is sorted by class
        assert (x[:, :, 0] == 0).all(2).all(1).any()  # padding of a shifted image


def test_lines_and_file(tmp_path, capsys, monkeypatch):
    class Pool:  # the processes of their own are torch's and Python's business
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def apply(self, function, args):
            return function(*args)

    monkeypatch.setattr(recipe.multiprocessing, 'get_context', lambda kind: type('C', (), {
        'Pool': staticmethod(lambda *args, **kwargs: Pool())}))
    recipe.main([
        '--archive', str(tmp_path / 'a.npz'), '--images', '400', '--batches', '3', '--batch-size', '8',
        '--folder-images', '30', '--model', 'wrn10_2_relu', '--train-batch-size', '4', '--train-steps', '1',
        '--json', str(tmp_path / 'out' / 'data.json'), '--rounds', '1'])
    lines = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / 'out' / 'data.json').read_text())
    names = [measure['name'] for measure in result['measures']]
    assert len(lines) == len(names) + 1 and all(line.startswith(name) for line, name in zip(lines, names, strict=False))
    values = {measure['name']: measure['value'] for measure in result['measures']}
    assert all(value > 0 or name.startswith(('growth', 'DataLoader, loaded: growth')) for name, value in values.items())
    assert values['timm_paf, archive, over DataLoader, memmap'] == pytest.approx(
        values['timm_paf, archive: batches/s'] / values['DataLoader, memmap: batches/s'])


@pytest.mark.parametrize('value, met', [(0.5, True), (2., False), (3., False)])
def test_a_bound_that_is_missed_is_said_to_be(value, met):
    measure = recipe.Measure('x', value, 's', 2.)
    assert measure.met == met and ('missed' in str(measure)) != met


def test_a_figure_is_the_median_over_rounds_and_ratios_are_taken_within_one():
    rounds = [[recipe.Measure('timm_paf, archive: batches/s', ours, 'batches/s'),
               recipe.Measure('DataLoader, folder: batches/s', peer, 'batches/s')]
              for ours, peer in ((10., 5.), (40., 10.), (9., 9.))]
    for measures in rounds:
        measures += recipe.ratios(measures)
    assert [(m.name, m.value) for m in recipe.over_rounds(rounds)] == [
        ('timm_paf, archive: batches/s', 10), ('DataLoader, folder: batches/s', 9),
        ('timm_paf, archive, over DataLoader, folder', 2)]


@pytest.mark.parametrize('part', ['reader', 'augmentation'])
def test_wrong_images_are_not_timed(tmp_path, monkeypatch, capsys, part):
    if part == 'reader':
        Source = timm_paf.data.LabelledImages  # what an archive of this size is read into
        right = Source.take
        monkeypatch.setattr(Source, 'take', lambda self, rows: (right(self, rows)[0], right(self, rows)[1].flip(0)))
    else:
        right, calls = timm_paf.data.Augment.apply, itertools.count()
        monkeypatch.setattr(
            timm_paf.data.Augment, 'apply', lambda self, x, draws: right(self, x, draws).roll(next(calls), 0))
    monkeypatch.setattr(recipe.multiprocessing, 'get_context', lambda kind: pytest.fail('timed'))
    assert recipe.main(['--archive', str(tmp_path / 'a.npz'), '--images', '600']) == 2
    assert 'nothing was timed' in capsys.readouterr().err
