import pytest
import torch
from torch import nn

from timm_paf.attacks import autoattack


@pytest.mark.parametrize('settings, message', [
    (dict(version='plus'), "version = 'plus'"), (dict(version='standard', attacks=['square']), "version = 'standard'"),
    (dict(version='custom'), "version = 'custom'"), (dict(version='custom', attacks=['pgd']), r"attacks = \['pgd'\]"),
    (dict(version='custom', attacks=[]), r'attacks = \[\]'), (dict(version='custom', attacks='square'), 'a list of'),
    (dict(norm='l0'), "norm = 'l0'"), (dict(eps=0), 'eps = 0'), (dict(eps=8), 'Did you mean 8/255'),
    (dict(batch_size=0), 'batch_size = 0'), (dict(seed=-1), 'seed = -1'), (dict(seed=None), 'seed = None'),
    (dict(amp_dtype=torch.float16), 'float16'), (dict(compile='fast'), "'fast'"),
    (dict(rank=1), 'rank = 1, world_size = 1'), (dict(world_size=2), 'without a process group'),
], ids=str)
def test_bad_settings_are_named(trained, settings, message):
    with pytest.raises(ValueError, match=message):
        autoattack(*trained, **{'eps': 0.1, **settings})


@pytest.mark.parametrize('shape, norm', [((2, 16), 'linf'), ((2, 1, 4, 4), 'l2'), ((2, 1, 4, 4), 'l1')], ids=str)
def test_images_that_square_cannot_attack(shape, norm):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(ValueError, match='the Square attack needs images'):
        autoattack(model, torch.rand(shape), torch.zeros(2).long(), eps=0.1, norm=norm)


def test_too_few_classes_for_all_components():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match='apgd-t works with 2 classes'):
        autoattack(model, torch.rand(2, 1, 4, 4), torch.zeros(2).long(), eps=0.1, version='custom', attacks=['apgd-t'])
