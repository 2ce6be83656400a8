"""The losses of TRADES and MART against formulas in numpy, float64."""
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from timm_paf.tasks import boosted_cross_entropy, mart_loss, trades_loss


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def ce(q, target, smoothing):
    p = np.eye(q.shape[1])[target] if target.ndim == 1 else target
    return -(((1 - smoothing) * p + smoothing / q.shape[1]) * np.log(q)).sum(1)


def trades(clean, adv, target, beta, smoothing):
    p, q = softmax(clean), softmax(adv)
    return (ce(p, target, smoothing) + beta * (p * np.log(p / q)).sum(1)).mean()


def mart(clean, adv, target, beta, smoothing):
    p, q = softmax(clean), softmax(adv)
    y = target if target.ndim == 1 else target.argmax(1)
    rows = np.arange(len(y))
    others = q.copy()
    others[rows, y] = 0
    bce = ce(q, target, smoothing) - np.log(1 - others.max(1))
    return (bce + beta * (p * np.log(p / q)).sum(1) * (1 - p[rows, y])).mean()


@pytest.fixture(params=['classes', 'probabilities'])
def case(request):
    rng = np.random.default_rng(0)
    clean, adv = 3 * rng.standard_normal((2, 16, 5))
    target = rng.integers(0, 5, 16)
    if request.param == 'probabilities':
        target = softmax(2 * rng.standard_normal((16, 5)))
    return clean, adv, target


@pytest.mark.parametrize('beta, smoothing', [(0., 0.1), (6., 0.), (6., 0.1)])
def test_values(beta, smoothing, case):
    tensors = [torch.from_numpy(array) for array in case]
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    value = trades_loss(*tensors, beta=beta, criterion=criterion).item()
    assert value == pytest.approx(trades(*case, beta, smoothing), rel=1e-12)
    value = mart_loss(*tensors, beta=beta, smoothing=smoothing).item()
    assert value == pytest.approx(mart(*case, beta, smoothing), rel=1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_widened_first(dtype):
    clean, adv = torch.randn(2, 8, 5).to(dtype)
    y = torch.arange(8) % 5
    for loss in (trades_loss, mart_loss):
        low = loss(clean, adv, y, beta=6.)
        assert low.dtype == torch.float32
        assert_close(low, loss(clean.float(), adv.float(), y, beta=6.), rtol=0, atol=0)


@pytest.mark.parametrize('gap', [100., 1e4])
def test_confident_mistakes_stay_finite(gap):
    """1 - p_k rounds to 0; the loss of the gap grows as the gap does, twice: in -log p_y and in the margin."""
    adv = torch.tensor([[0., gap, 0.]], requires_grad=True)
    value = boosted_cross_entropy(adv, torch.tensor([0]))
    assert value.item() == pytest.approx(gap + gap - np.log(2), rel=1e-5)
    (gradient,) = torch.autograd.grad(value.sum(), adv)
    assert_close(gradient, torch.tensor([[-1.5, 2., -0.5]]), rtol=1e-3, atol=0)
