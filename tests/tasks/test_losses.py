"""The losses of TRADES and MART against formulas in numpy, float64."""
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from timm_paf.tasks import boosted_cross_entropy, mart_loss, trades_loss


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def soft(target, classes, smoothing=0.):
    p = np.eye(classes)[target] if target.ndim == 1 else target
    return (1 - smoothing) * p + smoothing / classes


def kl(p, q):
    return (p * np.log(p / q)).sum(1)


def ce(q, target):
    return -(target * np.log(q)).sum(1)


def trades(clean, adv, target, beta, smoothing):
    p, q = softmax(clean), softmax(adv)
    return (ce(p, soft(target, p.shape[1], smoothing)) + beta * kl(p, q)).mean()


def mart(clean, adv, target, beta, smoothing):
    p, q = softmax(clean), softmax(adv)
    y = target if target.ndim == 1 else target.argmax(1)
    rows = np.arange(len(y))
    others = q.copy()
    others[rows, y] = 0
    bce = ce(q, soft(target, p.shape[1], smoothing)) - np.log(1 - others.max(1))
    return (bce + beta * kl(p, q) * (1 - p[rows, y])).mean()


@pytest.fixture(params=['classes', 'probabilities'])
def case(request):
    rng = np.random.default_rng(0)
    clean, adv = 3 * rng.standard_normal((2, 16, 5))
    target = rng.integers(0, 5, 16)
    if request.param == 'probabilities':
        target = softmax(2 * rng.standard_normal((16, 5)))
    return clean, adv, target


def ours(name, clean, adv, target, beta, smoothing):
    if name == 'trades':
        criterion = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
        return trades_loss(clean, adv, target, beta=beta, criterion=criterion)
    return mart_loss(clean, adv, target, beta=beta, smoothing=smoothing)


@pytest.mark.parametrize('name, formula', [('trades', trades), ('mart', mart)], ids=['trades', 'mart'])
@pytest.mark.parametrize('beta, smoothing', [(0., 0.1), (6., 0.), (6., 0.1)])
def test_values(name, formula, beta, smoothing, case):
    tensors = [torch.from_numpy(array) for array in case]
    value = ours(name, *tensors, beta, smoothing).item()
    assert value == pytest.approx(formula(*case, beta, smoothing), rel=1e-12)


@pytest.mark.parametrize('name, formula', [('trades', trades), ('mart', mart)], ids=['trades', 'mart'])
def test_gradients_reach_both_predictions(name, formula, case):
    """As finite differences of the formula: no side is detached."""
    clean, adv, target = case
    tensors = [torch.from_numpy(array).requires_grad_() for array in (clean, adv)]
    loss = ours(name, *tensors, torch.from_numpy(target), 6., 0.1)
    gradients = torch.autograd.grad(loss, tensors)
    for which, gradient in enumerate(gradients):
        for place in ((0, 0), (3, 4), (9, 2)):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [clean.copy(), adv.copy()]
                moved[which][place] += step
                ends.append(formula(*moved, target, 6., 0.1))
            assert gradient[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-8)


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
