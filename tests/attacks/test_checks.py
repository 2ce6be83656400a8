import pytest
import torch
from torch import nn

from timm_paf.attacks import check_images


@pytest.mark.parametrize('x, y, message', [
    (torch.full((2, 1, 4, 4), 1.5), torch.zeros(2).long(), r'\[1.5, 1.5\]'),
    (torch.full((2, 1, 4, 4), float('nan')), torch.zeros(2).long(), 'nan'),
    (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2).long(), 'x is a torch.uint8'),
    (torch.zeros(2, 1, 4, 4), torch.zeros(3).long(), r'y has shape \(3,\)'),
    (torch.zeros(2, 1, 4, 4), torch.tensor([0, 3]), 'from 0 to 3; expected 0 to 2'),
    (torch.zeros(2, 1, 4, 4), torch.zeros(2), 'y is a torch.float32'),
    (torch.zeros(0, 1, 4, 4), torch.zeros(0).long(), 'no images'),
], ids=['range', 'nan', 'uint8', 'count', 'label', 'label dtype', 'none'])
def test_bad_input_is_named(x, y, message):
    with pytest.raises(ValueError, match=message):
        check_images(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), x, y, device=torch.device('cpu'))


def test_number_of_classes_and_mode():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 7)).train()
    assert check_images(model, torch.rand(3, 1, 4, 4), torch.tensor([0, 6, 2]), device=torch.device('cpu')) == 7
    assert model[1].training and model[1].num_batches_tracked == 0
