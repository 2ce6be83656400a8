"""The best adversarial image: early stop, restarts, target classes, seeds, mixed precision."""
import pytest
import torch
from torch import nn

from timm_paf.attacks import PGD


class Network(nn.Module):
    """A small smooth network in float64 that treats each image by itself, to the last bit; counts images."""

    def __init__(self, classes=4, pixels=12):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(pixels, 16, dtype=torch.float64))
        self.out = nn.Parameter(torch.randn(16, classes, dtype=torch.float64))
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        hidden = (x.flatten(1)[:, :, None] * self.weight).sum(1).tanh()
        return (hidden[:, :, None] * self.out).sum(1)


@pytest.fixture
def case():
    model = Network()
    x = torch.rand(40, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 4  # misclassified without an attack
    model.batches.clear()
    return model, x, y


def wrong(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) != y


def values(model, x, y):
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y, reduction='none')


def path(model, x, y, eps, step, steps):
    """All the points that PGD without a random start visits; a bare loop."""
    points = [x]
    for _ in range(steps):
        at = points[-1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(at), y, reduction='sum'), at)
        points.append(torch.clamp(at.detach() + step * gradient.sign(), x - eps, x + eps).clamp(0, 1))
    return points


def test_early_stop_returns_the_first_point_that_fools_and_pushes_no_image_further(case):
    model, x, y = case
    points = path(model, x, y, 0.12, 0.03, 8)
    fooled = torch.stack([wrong(model, point, y) for point in points])
    first = torch.where(fooled.any(0), fooled.float().argmax(0), len(points))
    assert {0, 1, 2, len(points)} <= set(first.tolist())  # the case has some of each kind
    model.batches.clear()
    x_adv = PGD(eps=0.12, step_size=0.03, steps=8, random_start=False, early_stop=True)(model, x, y)
    # once without a gradient; then at every step those that no earlier point fooled
    expected = [40] + [int((first >= max(i, 1)).sum()) for i in range(9)]
    assert model.batches == [n for n in expected if n]
    for i in range(40):
        if first[i] < len(points):
            torch.testing.assert_close(x_adv[i], points[first[i]][i], rtol=0, atol=1e-12)
    robust = first == len(points)
    highest = torch.stack([values(model, point, y) for point in points[1:]]).amax(0)
    torch.testing.assert_close(values(model, x_adv, y)[robust], highest[robust])


def test_early_stop_ends_when_no_image_is_robust(case):
    model, x, _ = case
    y = model(x).argmax(1) + 1 & 3
    model.batches.clear()
    assert torch.equal(PGD(eps=0.1, restarts=3, early_stop=True)(model, x, y), x)
    assert model.batches == [40]  # all are misclassified without an attack


@pytest.mark.parametrize('norm, eps, early_stop', [('linf', 0.08, False), ('linf', 0.08, True), ('l1', 0.4, True)])
def test_restarts_keep_the_best_of_each_image(case, norm, eps, early_stop):
    """More restarts never fool fewer images, and never lower the loss of a robust image."""
    model, x, y = case
    settings = dict(eps=eps, norm=norm, steps=3, early_stop=early_stop)
    seeds = torch.arange(40)
    kept = [PGD(**settings, restarts=n)(model, x, y, seeds=seeds) for n in (2, 3, 6)]
    fooled = torch.stack([wrong(model, k, y) for k in kept])
    loss = torch.stack([values(model, k, y) for k in kept])
    assert (fooled[:-1] <= fooled[1:]).all() and 3 < fooled[0].sum() < 40
    robust = ~fooled[-1]
    assert (loss[:-1, robust] <= loss[1:, robust]).all() and (loss[0, robust] < loss[-1, robust]).any()


def test_only_robust_images_continue(case):
    model, x, y = case
    seeds = torch.arange(40)
    before = [PGD(eps=0.08, steps=2, restarts=n)(model, x, y, seeds=seeds) for n in (2, 3)]
    robust = [int((~wrong(model, x_adv, y)).sum()) for x_adv in before]
    model.batches.clear()
    PGD(eps=0.08, steps=2, restarts=4)(model, x, y, seeds=seeds)
    assert model.batches[:4] == [40, 37, 37, 37]  # clean; then two steps and the final check
    assert model.batches[7::3] == robust and model.batches[6:] == sorted(model.batches[6:], reverse=True)


@pytest.mark.parametrize('loss', ['ce-targeted', 'dlr-targeted'])
def test_given_targets_are_reached(case, loss):
    """Success is then classification as the target, and other misclassified images continue."""
    model, x, y = case
    target = (y + 2) % 4
    x_adv = PGD(eps=0.5, loss=loss, restarts=3, steps=20)(model, x, y, target=target)
    reached = model(x_adv).argmax(1) == target
    assert reached.float().mean() > 0.8
    plain = PGD(eps=0.5, loss=loss, steps=20, random_start=False)(model, x, y, target=target)
    with torch.no_grad():
        before, after = (m.log_softmax(1).gather(1, target[:, None]) for m in (model(x), model(plain)))
    assert (after > before).float().mean() > 0.9


@pytest.mark.parametrize('loss', ['ce-targeted', 'dlr-targeted'])
@pytest.mark.parametrize('classes, fooled', [(1, False), (2, False), (3, True), (9, True)])
def test_the_likeliest_wrong_classes_are_tried_in_turn(loss, classes, fooled):
    """Classes 4 and 1 are near and cannot be reached; class 2, the third, rises with the pixels."""
    model = nn.Linear(3, 5, bias=True)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[2] = 5.
        model.bias.copy_(torch.tensor([1., 0.7, -5.5, -9., 0.8]))
    x, y = torch.full((2, 3), 0.3), torch.zeros(2).long()
    x_adv = PGD(eps=0.2, loss=loss, target_classes=classes, random_start=False)(model, x, y)
    assert wrong(model, x_adv, y).tolist() == [fooled, fooled]


@pytest.mark.parametrize('settings', [
    dict(norm='l1', eps=0.8), dict(restarts=2, early_stop=True, norm='l2', eps=0.2), dict(loss='kl'),
    dict(loss='dlr-targeted', target_classes=2), dict(step_rule='momentum', early_stop=True),
], ids=str)
def test_result_of_an_image_does_not_depend_on_its_batch(case, settings):
    """One by one, in halves, shuffled, and after other calls: with seeds an image's result is its own, bit for bit."""
    model, x, y = case
    attack = PGD(**{'eps': 0.1, 'steps': 4, 'seed': 5, **settings})
    seeds = torch.arange(40) * 977
    whole = attack(model, x, y, seeds=seeds)
    for rows in (torch.randperm(40), torch.arange(23), torch.arange(23, 40), torch.tensor([7]), torch.tensor([39])):
        assert torch.equal(attack(model, x[rows], y[rows], seeds=seeds[rows]), whole[rows])
    assert not torch.equal(attack(model, x, y, seeds=seeds + 1), whole)
    assert attack.state_dict() == {}  # the sequence of the generator has not begun


@pytest.mark.parametrize('early_stop', [False, True])
@pytest.mark.parametrize('shift', [-0.7, 0.7], ids=['seems fooled', 'seems robust'])
def test_success_under_autocast_is_success_without(case, early_stop, shift):
    """Autocast may show a false success or hide a true one; the result must not depend on it."""
    model, x, y = case

    class Doubtful(nn.Module):
        """Under autocast the logit of the label is moved by some amount."""

        def forward(self, at):
            logits = model(at)
            if torch.is_autocast_enabled('cpu'):
                nearest = torch.cdist(at.detach().flatten(1).double(), x.flatten(1)).argmin(1)
                logits = logits + shift * nn.functional.one_hot(y[nearest], logits.shape[1])
            return logits
    attack = PGD(eps=0.12, steps=8, restarts=2, early_stop=early_stop, seed=3)
    expected = wrong(model, attack(model, x, y, seeds=torch.arange(40)), y)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        x_adv = attack(Doubtful(), x, y, seeds=torch.arange(40))
    assert 3 < expected.sum() < 40
    assert torch.equal(wrong(model, x_adv, y), expected)


@pytest.mark.parametrize('norm, eps', [('linf', 0.1), ('l2', 1.), ('l1', 8.)])
def test_gradients_under_float16_do_not_vanish(norm, eps):
    """The probability of the other class is 1e-9: as float16, in which the backward pass runs, that is 0."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2, bias=False))
    x, y = torch.rand(6, 192), torch.ones(6).long()
    with torch.no_grad():
        model[1].weight[0] = -0.1 * model[1].weight[1].sign()
        model[1].weight[1] = -2 * model[1].weight[0]
        x[:, model[1].weight[1] < 0] *= 0.1
        x[:, model[1].weight[1] > 0] = 1 - 0.1 * x[:, model[1].weight[1] > 0]
    attack = PGD(eps=eps, norm=norm, random_start=False, steps=5)
    with torch.autocast('cpu', dtype=torch.float16):
        at = x.clone().requires_grad_()
        nn.functional.cross_entropy(model(at).float(), y, reduction='sum').backward()
        assert not at.grad.any()
        x_adv = attack(model, x, y)
    expected = attack(model, x, y)
    gain = [(model(t)[:, 0] - model(t)[:, 1]).detach() for t in (x, x_adv, expected)]
    assert ((gain[1] - gain[0]) > 0.99 * (gain[2] - gain[0])).all() and (gain[2] > gain[0] + 1).all()


@pytest.mark.parametrize('norm, eps, rule', [('linf', 0.1, 'momentum'), ('l2', 0.3, 'fixed'), ('l1', 0.8, 'fixed')])
@pytest.mark.parametrize('slope', [0., 1.], ids=['not a number', 'infinite'])
def test_a_broken_gradient_does_not_change_other_images(case, norm, eps, rule, slope):
    model, x, y = case

    class Broken(nn.Module):
        def forward(self, x):
            pixel = x[5, 0, 0, 0]
            root = slope * (pixel - pixel.detach()).sqrt()  # 0, and infinitely steep
            return model(x) + nn.functional.pad(root.view(1, 1), (0, 3, 5, 34))
    attack = PGD(eps=eps, norm=norm, random_start=False, step_rule=rule)
    x_adv, expected = attack(Broken(), x, y), attack(model, x, y)
    assert x_adv.isfinite().all()
    others = torch.arange(40) != 5
    assert torch.equal(x_adv[others], expected[others])


def test_nan_logits_are_no_success(case):
    model, x, y = case

    class Breaks(nn.Module):
        def forward(self, x):
            logits = model(x)
            return torch.where((x.flatten(1).amax(1) > 0.999)[:, None], torch.nan, 1) * logits
    attack = PGD(eps=0.3, restarts=2)
    x_adv = attack(Breaks(), 0.8 * x, y)
    assert model(x_adv).isfinite().all()
    assert (x_adv.flatten(1).amax(1) <= 0.999).all()
