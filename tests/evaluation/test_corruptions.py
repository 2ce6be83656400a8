"""Archives in the form of CIFAR-10-C, against counts made from the arrays themselves."""
import resource

import numpy as np
import pytest
import torch
from torch import nn

from timm_paf.evaluation import BENCHMARK_CORRUPTIONS, Accuracy, CorruptionArchive, corruption_accuracy

N = 12


class Brightness(nn.Module):
    """The class is the brightness of the first channel, in tenths; the other channels are ignored."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        assert not self.training and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
        classes = (x[:, 0].mean((1, 2)) * 10).long().clamp(max=9)
        return nn.functional.one_hot(classes, 10).float() + self.anchor


def make(folder, names, *, repeated=True, n=N):
    """Images that show their class, of which the last `severity` of each block are black."""
    labels = np.arange(n) % 9 + 1
    for shift, name in enumerate(names):
        images = np.zeros((5 * n, 4, 6, 3), np.uint8)
        for severity in range(1, 6):
            block = np.broadcast_to((labels * 25.5 + 12)[:, None, None], (n, 4, 6)).astype(np.uint8)
            images[(severity - 1) * n:severity * n, ..., 0] = block
            images[severity * n - severity - shift:severity * n] = 0
        np.save(folder / f'{name}.npy', images)
    np.save(folder / 'labels.npy', np.tile(labels, 5) if repeated else labels)


@pytest.mark.parametrize('repeated', [True, False], ids=['labels of all', 'labels of one severity'])
def test_every_cell_is_counted(tmp_path, repeated):
    make(tmp_path, ['fog', 'snow', 'mine'], repeated=repeated)
    archive = CorruptionArchive(tmp_path)
    assert (archive.names, archive.images_per_severity, archive.image_shape) == (('snow', 'fog', 'mine'), N, (3, 4, 6))
    model = Brightness().train()
    report = corruption_accuracy(model, archive, batch_size=5)
    assert model.training
    for shift, name in enumerate(['fog', 'snow', 'mine']):
        assert report.accuracies[name] == tuple(Accuracy(N - severity - shift, N) for severity in range(1, 6))
    assert report.mean == Accuracy(15 * N - 3 * 15 - 5 * 3, 15 * N)
    assert report.at_severity(2) == Accuracy(3 * N - 3 * 2 - 3, 3 * N)
    assert report.of('snow') == Accuracy(5 * N - 15 - 5, 5 * N)
    assert report.to_dict()['correct'] == report.mean.correct
    report = corruption_accuracy(model, archive, n_examples=8)
    assert report.accuracies['fog'] == tuple(Accuracy(8 - max(0, severity - 4), 8) for severity in range(1, 6))


def test_mean_is_over_the_benchmark_only(tmp_path):
    make(tmp_path, [*BENCHMARK_CORRUPTIONS, 'spatter'][::-1], n=24)  # spatter is the least corrupted
    report = corruption_accuracy(Brightness(), CorruptionArchive(tmp_path))
    assert report.averaged == BENCHMARK_CORRUPTIONS and len(report.accuracies) == 16
    assert report.mean.total == 15 * 5 * 24 and report.of('spatter') == Accuracy(5 * 24 - 15, 5 * 24)


def test_archives_are_memory_mapped(tmp_path):
    shape = (5 * 40_000, 32, 32, 3)  # 614 MB, of which nothing is on the disk
    np.lib.format.open_memmap(tmp_path / 'fog.npy', 'w+', np.uint8, shape).flush()
    np.save(tmp_path / 'labels.npy', np.zeros(40_000, np.uint8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = corruption_accuracy(Brightness(), CorruptionArchive(tmp_path), n_examples=50)
    assert report.mean == Accuracy(250, 250)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100


def rewrite(name, array):
    return lambda folder: np.save(folder / name, array)


@pytest.mark.parametrize('damage, error, message', [
    (lambda f: (f / 'labels.npy').unlink(), FileNotFoundError, 'there is no labels.npy'),
    (lambda f: (f / 'fog.npy').unlink(), FileNotFoundError, 'no <corruption>.npy'),
    (rewrite('fog.npy', np.zeros((60, 4, 6, 3), np.float32)), ValueError, 'float32 of shape'),
    (rewrite('fog.npy', np.zeros((61, 4, 6, 3), np.uint8)), ValueError, r'\(61, 4, 6, 3\); expected uint8 \(5 N'),
    (rewrite('fog.npy', np.zeros((50, 4, 6, 3), np.uint8)), ValueError, r'\(60,\); expected 50 integers'),
    (rewrite('snow.npy', np.zeros((60, 4, 4, 3), np.uint8)), ValueError, 'different shapes'),
    (rewrite('labels.npy', np.zeros(60)), ValueError, 'expected 60 integers'),
    (rewrite('fog.npy', np.array([{}], dtype=object)), ValueError, 'cannot be read'),
    (lambda f: (f / 'fog.npy').write_bytes(b'\x93NUMPY'), ValueError, 'cannot be read'),
], ids=['labels', 'images', 'floats', 'count', 'labels count', 'shapes', 'label dtype', 'objects', 'cut'])
def test_damage_is_named(tmp_path, damage, error, message):
    make(tmp_path, ['fog'])
    damage(tmp_path)
    with pytest.raises(error, match=message) as caught:
        CorruptionArchive(tmp_path)
    assert '\n' not in str(caught.value)


def test_labels_beyond_the_models_classes(tmp_path):
    make(tmp_path, ['fog'])
    np.save(tmp_path / 'labels.npy', np.full(N, 10))
    with pytest.raises(ValueError, match='labels from 10 to 10; expected 0 to 9'):
        corruption_accuracy(Brightness(), CorruptionArchive(tmp_path))
