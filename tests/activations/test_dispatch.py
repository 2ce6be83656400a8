"""Activations that the kernels do not know run by their formula, on every device."""
import pytest
import torch

from timm_paf import kernels
from timm_paf.activations.differentiation import FORMULAS, Formula
from timm_paf.activations.dispatch import apply
from timm_paf.kernels import choice


@pytest.fixture
def new_activation(monkeypatch):
    """`parabola`, x + alpha x^2, which no kernel computes."""
    def partials(x, alpha, beta, need_params):
        return 1 + 2 * alpha * x, x.square(), None

    monkeypatch.setitem(FORMULAS, 'parabola', Formula(lambda x, alpha: x + alpha * x.square(), partials))
    return 'parabola'


@pytest.mark.parametrize('mode, dtype, device', [
    *((mode, torch.float32, 'cpu') for mode in choice.MODES), ('auto', torch.bfloat16, 'cpu'),
    ('auto', torch.float64, 'cpu'), *(pytest.param('fused', dtype, 'cuda', marks=pytest.mark.gpu) for dtype in (
        torch.float32, torch.bfloat16, torch.float64))], ids=str)
def test_a_new_activation_needs_no_kernel(new_activation, mode, dtype, device):
    x = torch.tensor([-1., 0.5, 2.], dtype=dtype, device=device, requires_grad=True)
    alpha = torch.tensor([0.5], device=device, requires_grad=True)
    with kernels.use(mode):
        y = apply(new_activation, x, alpha, None, 1)
        grad_x, grad_alpha = torch.autograd.grad(y.sum(), [x, alpha])
    assert y.tolist() == [-0.5, 0.625, 4.] and grad_x.tolist() == [0., 1.5, 3.] and grad_alpha.tolist() == [5.25]
