"""Images for evaluation: the same results as with one float tensor, read batch by batch."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from timm_paf.attacks import ThreatModel
from timm_paf.data import DatasetOptions, Decoding, EvaluationImages, LabelledImages, archives, datasets, open_dataset
from timm_paf.evaluation import evaluate_robustness

COUNT = 23
BYTES = torch.randint(0, 256, (COUNT, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % 3
FLOATS = BYTES / 255


@pytest.fixture
def images():
    return EvaluationImages(LabelledImages(BYTES, LABELS, 3, 'bytes')).images


SELECTIONS = {
    'slice': slice(3, 9), 'step': slice(1, None, 5), 'indices': torch.tensor([4, 0, 4]), 'mask': LABELS == 1,
    'one': 5, 'last': -1}


@pytest.mark.parametrize('rows', SELECTIONS.values(), ids=SELECTIONS.keys())
def test_rows_are_those_of_the_tensor(images, rows):
    seen = images[rows]
    seen = seen if isinstance(seen, torch.Tensor) else seen.float()
    assert seen.dtype == torch.float32 and torch.equal(seen, FLOATS[rows])


def test_it_stands_for_a_tensor(images):
    assert images.shape == FLOATS.shape and images[2:][1:].shape == (COUNT - 3, 3, 8, 8)
    assert torch.equal(images[:5].to('cpu', torch.float64), FLOATS[:5].double())
    assert EvaluationImages(LabelledImages(FLOATS, LABELS, 3, 'floats')).images is FLOATS


def test_pixels_that_no_source_has_checked():
    class Normalised:
        name, num_classes, image_shape, labels = 'own', 3, (3, 8, 8), LABELS

        def __len__(self):
            return COUNT

        def take(self, indices):
            return FLOATS[indices] * 4 - 2, LABELS[indices]

    with pytest.raises(ValueError, match=r'own: got pixels from -.*expected finite values in \[0, 1\]'):
        EvaluationImages(Normalised()).images[:4].float()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


@pytest.mark.parametrize('kind', ['folder', 'archive'])
def test_a_split_that_is_too_large_is_read_in_batches(tmp_path, monkeypatch, model, kind):
    monkeypatch.setattr(datasets, 'IN_MEMORY', 192 * (COUNT - 1))
    monkeypatch.setattr(archives, 'IN_MEMORY', 0)
    for place in ('train', 'val'):
        for number, (image, label) in enumerate(zip(BYTES.permute(0, 2, 3, 1).numpy(), LABELS.tolist(), strict=True)):
            (tmp_path / place / f'class{label}').mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / place / f'class{label}' / f'{number}.png')
        np.savez(tmp_path / f'{place}.npz', image=BYTES.permute(0, 2, 3, 1).numpy(), label=LABELS.numpy())
    options = DatasetOptions(
        data_dir=tmp_path, num_classes=3, test_data=[tmp_path / 'val.npz'], val_size=5, decoding=Decoding(workers=2))
    test = open_dataset('folder' if kind == 'folder' else str(tmp_path / 'train.npz'), options).test
    assert not isinstance(test, LabelledImages) and len(test) == COUNT
    taken, take = [], test.take
    monkeypatch.setattr(test, 'take', lambda indices: taken.append(len(indices)) or take(indices))
    data = EvaluationImages(test)
    settings = dict(threat=ThreatModel(eps=0.05), pgd_steps=3, autoattack_version=None, batch_size=4)
    streamed = evaluate_robustness(model, data.images, data.labels, **settings)
    assert max(taken) == 4
    whole = evaluate_robustness(model, data.images.float(), data.labels, **settings)
    for name in ('clean', 'pgd'):
        assert streamed.measurements[name].accuracy == whole.measurements[name].accuracy
    assert 0 < whole.measurements['clean'].accuracy.correct < COUNT
    # the images are those of the files, each with its label
    images, labels = data.take(torch.arange(COUNT))
    assert sorted(zip(map(tuple, images.flatten(1).tolist()), labels.tolist(), strict=True)) == sorted(
        zip(map(tuple, BYTES.flatten(1).tolist()), LABELS.tolist(), strict=True))
