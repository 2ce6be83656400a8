"""Benchmark of the data on a small archive: what it makes, reads and prints."""
import itertools
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import timm_paf.data
from recipes.benchmarks import data as benchmark


def test_the_archive_is_sorted_and_every_reader_gives_augmented_batches(tmp_path):
    path = tmp_path / 'a.npz'
    benchmark.make_archive(path, 203)
    held, mapped = np.load(path), benchmark.PeerArchive(path)
    assert held['image'].shape == (203, 32, 32, 3) and held['image'].dtype == np.uint8
    assert (np.diff(held['label']) >= 0).all() and np.bincount(held['label']).min() >= 20
    assert np.array_equal(mapped.images, held['image']) and np.array_equal(mapped.labels, held['label'])
    for batches in (
            benchmark.our_batches(path, 16), *(benchmark.peer_batches(
                lambda loaded=loaded: benchmark.PeerArchive(path, loaded), 16) for loaded in (False, True))):
        x, y = next(batches)
        assert x.shape == (16, 3, 32, 32) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
        assert len(y.unique()) > 2  # shuffled: the archive is sorted by class
        assert (x[:, :, 0] == 0).all(2).all(1).any()  # padding of a shifted image


def test_every_measure_and_the_ratios(tmp_path, figures, monkeypatch, capsys):
    context = SimpleNamespace(Pool=lambda *args, **kwargs: ThreadPool(1))  # measures in this process
    monkeypatch.setattr(benchmark.multiprocessing, 'get_context', lambda kind: context)
    found = figures(
        benchmark.main, '--archive', str(tmp_path / 'a.npz'), '--images', '400', '--batches', '3', '--batch-size', '8',
        '--folder-images', '30', '--model', 'wrn10_2_relu', '--train-batch-size', '4', '--train-steps', '1',
        '--rounds', '1')
    values = {row: value for (row, _), value in found.items()}
    assert all(value > 0 for name, value in values.items() if 'growth' not in name)
    assert values['timm_paf, archive ÷ DataLoader, memmap'] == pytest.approx(
        values['timm_paf, archive, batches/s'] / values['DataLoader, memmap, batches/s'])
    assert 'timm_paf, folder ÷ DataLoader, folder' in values
    assert benchmark.main(['--archive', str(tmp_path / 'a.npz'), '--images', '600']) == 2
    assert 'holds 400 images, not 600' in capsys.readouterr().err


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
    monkeypatch.setattr(benchmark.multiprocessing, 'get_context', lambda kind: pytest.fail('timed'))
    assert benchmark.main(['--archive', str(tmp_path / 'a.npz'), '--images', '600']) == 2
    assert 'nothing was timed' in capsys.readouterr().err
