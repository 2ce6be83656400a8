import math

import pytest
import torch

from timm_paf.attacks import STEP_RULES


@pytest.mark.parametrize('name, shares', [
    ('fixed', [1, 1, 1, 1]), ('momentum', [1, 1, 1, 1]),
    ('cosine', [1, (1 + math.sqrt(.5)) / 2, .5, (1 - math.sqrt(.5)) / 2]),
])
def test_sizes(name, shares):
    assert [STEP_RULES[name].size(i, 4) for i in range(4)] == pytest.approx(shares)


@pytest.mark.parametrize('name', ['fixed', 'cosine'])
def test_other_rules_follow_the_gradient(name):
    before, gradient = torch.ones(2, 3), torch.randn(2, 3)
    assert torch.equal(STEP_RULES[name].follow(before, gradient), gradient)


def test_momentum_adds_gradients_of_equal_size():
    """For each image, for any size of its gradient."""
    first, second = torch.tensor([[[3., -1.]], [[1e-20, 1e-20]]]), torch.tensor([[[0., 4e9]], [[-2., 0.]]])
    follow = STEP_RULES['momentum'].follow
    torch.testing.assert_close(follow(follow(None, first), second), torch.tensor([[[1.5, 1.5]], [[-1., 1.]]]))
    assert torch.equal(follow(None, torch.zeros(1, 2)), torch.zeros(1, 2))
