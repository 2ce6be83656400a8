import torch

from timm_paf.attacks import STEP_RULES


def test_momentum_adds_gradients_of_equal_size():
    """For each image, for any size of its gradient."""
    first, second = torch.tensor([[[3., -1.]], [[1e-20, 1e-20]]]), torch.tensor([[[0., 4e9]], [[-2., 0.]]])
    follow = STEP_RULES['momentum'].follow
    torch.testing.assert_close(follow(follow(None, first), second), torch.tensor([[[1.5, 1.5]], [[-1., 1.]]]))
    assert torch.equal(follow(None, torch.zeros(1, 2)), torch.zeros(1, 2))
