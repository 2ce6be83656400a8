"""The comparison of attacks: what is counted, and against what time is measured."""

import pytest
import torch
from torch import nn

from recipes.benchmarks import attack as recipe


@pytest.fixture
def subject():
    """Two classes; the logit of class 1 is the pixel minus a half: an image stands within its distance to that."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.], [1.]]))
        model[1].bias.copy_(torch.tensor([0., -0.5]))
    x = torch.tensor([0.55, 0.65, 0.9, 0.2]).view(4, 1, 1, 1)
    return recipe.kept(recipe.Subject('one pixel', model, x, torch.tensor([1, 1, 1, 1]), ['0.1', '1/5']))


@pytest.mark.parametrize('name', ['ours', 'early_stop'])
def test_standing_images_are_counted(subject, name):
    assert len(subject.x) == 3  # the last is misclassified as it is
    assert recipe.standing(subject, getattr(recipe, name), 5) == [2, 1]


def test_an_attack_that_cheats_is_an_error(subject):
    with pytest.raises(RuntimeError, match=r'left the ball of radius 0\.1'):
        recipe.standing(subject, lambda model, x, y, eps, steps: x - 2 * eps, 5)


def test_the_floor_is_as_many_passes_and_all_are_timed(subject):
    passes = []
    subject.model.register_full_backward_pre_hook(lambda *_: passes.append(1))
    recipe.floor(subject.model, subject.x, subject.y, 0.1, 7)
    assert len(passes) == 7
    times, spread = recipe.ratios(subject, {'ours': recipe.ours}, 3, images=2, rounds=2)
    assert times['floor'] == 1 and spread['floor'] == 0 and times['ours'] > 0
