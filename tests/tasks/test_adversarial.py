import pytest
import timm
import torch
from torch import nn

import timm_paf  # noqa: F401
from timm_paf.activations import paf_modules, paf_parameters
from timm_paf.attacks import PGD
from timm_paf.tasks import TASKS, AdversarialTrainingTask, TaskOptions, create_task, learnable_betas

EPS = 0.1


def make(name='wrn10_2_pssilu', attack=None, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, in_chans=1)
    return AdversarialTrainingTask(
        model, attack or PGD(eps=EPS, steps=2), options=TaskOptions(**options), verbose=False)


@pytest.fixture
def batch():
    return torch.rand(8, 1, 8, 8), torch.randint(0, 10, (8,))


def test_attack_is_given_the_likeliest_class_and_the_loss_the_soft_label(batch):
    x, y = batch
    soft = 0.7 * nn.functional.one_hot(y, 10) + 0.03
    given = []

    def attack(model, images, labels):
        given.append(labels)
        return images

    task = make(attack=attack, beta_penalty=0.)
    result = task(x, soft)
    assert torch.equal(given[0], y)
    expected = -(soft * result['output'].log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(result['loss'], expected)


@pytest.mark.parametrize('name', TASKS)
@pytest.mark.parametrize('attack', [PGD(eps=EPS, steps=1), lambda model, x, y: x], ids=['PGD', 'own'])
def test_images_outside_of_0_to_1_are_refused(name, attack, batch):
    task = create_task(name, timm.create_model('wrn10_2_relu', in_chans=1), attack)
    for images in ((batch[0] - 0.5) / 0.2, batch[0] * torch.nan, (255 * batch[0]).byte()):
        with pytest.raises(ValueError, match=r'expected .*\[0, 1\]'):
            task(images, batch[1])


@pytest.mark.parametrize('strength', [0., 1., 10.])
def test_penalty_is_strength_times_beta(batch, strength):
    task = make(beta_penalty=strength)
    (beta,) = learnable_betas(task.trainable_module)
    with torch.no_grad():
        beta.fill_(-0.25)
    assert task.penalty().item() == pytest.approx(0.25 * strength)
    assert task(*batch)['penalty'].item() == pytest.approx(0.25 * strength)
    (gradient,) = torch.autograd.grad(task.penalty(), beta, allow_unused=True) if strength else (torch.zeros(1),)
    assert gradient.item() == -strength


class Halved(nn.Module):
    """A parametrization."""

    def forward(self, original):
        return original / 2


def test_penalty_and_clip_follow_a_beta_that_torch_computes(batch):
    task = make(beta_penalty=10., beta_grad_clip=0.01)
    (_, act), = paf_modules(task.trainable_module)
    torch.nn.utils.parametrize.register_parametrization(act, 'beta', Halved())
    (original,) = learnable_betas(task.trainable_module)
    with torch.no_grad():
        original.fill_(-0.5)
    optimizer = torch.optim.SGD([original], lr=1.)
    task.attach_optimizer(optimizer)
    result = task(*batch)
    assert result['penalty'].item() == pytest.approx(10 * 0.25)
    result['loss'].backward()
    optimizer.step()
    assert original.item() == pytest.approx(-0.49)  # pulled to 0 by the penalty


@pytest.mark.parametrize('name', ['wrn10_2_relu', 'wrn10_2_pssilu_fixed'])
def test_without_a_learned_beta_nothing_is_added(name):
    assert make(name).penalty().item() == 0 and learnable_betas(make(name).trainable_module) == []


@pytest.mark.parametrize('clip', [None, 0.01, 1e-4])
def test_step_of_beta_is_bounded_by_the_clip(batch, clip):
    task = make(beta_grad_clip=clip, alpha_grad_clip=None)
    (beta,) = learnable_betas(task.trainable_module)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.01)
    task.attach_optimizer(optimizer)
    before = beta.item()
    task(*batch)['loss'].backward()
    raw = beta.grad.norm().item()
    others = [p.grad.clone() for p in task.parameters() if p is not beta]
    optimizer.step()
    assert raw > 1  # the penalty alone gives 10
    assert abs(beta.item() - before) == pytest.approx(0.01 * (raw if clip is None else clip), rel=1e-3)
    rest = [p.grad for p in task.parameters() if p is not beta]
    assert all(torch.equal(after, g) for after, g in zip(rest, others, strict=True))


@pytest.mark.parametrize('name', ['alpha', 'beta'])
@pytest.mark.parametrize('lr, momentum, nesterov', [(0.1, 0.9, True), (0.2, 0.9, False), (0.4, 0., False)], ids=str)
def test_largest_change_per_update(name, lr, momentum, nesterov):
    """However large the gradients are: lr * clip / (1 - momentum), as the docs say."""
    task = make(**{f'{name}_grad_clip': 0.01}, beta_penalty=0.)
    (parameter,) = paf_parameters(task.trainable_module, name).values()
    task.attach_optimizer(optimizer := torch.optim.SGD([parameter], lr=lr, momentum=momentum, nesterov=nesterov))
    steps = []
    for update in range(100):
        before = parameter.item()
        parameter.grad = torch.full_like(parameter, -1e6 if update < 60 else 1e3)
        optimizer.step()
        steps.append(abs(parameter.item() - before))
    assert max(steps) <= lr * 0.01 / (1 - momentum) * (1 + 1e-3)
    if name == 'alpha':  # beta comes to its bound
        assert max(steps) == pytest.approx(lr * 0.01 / (1 - momentum), rel=0.01)


@pytest.mark.parametrize('clip', [None, 0.01, 1e-4])
def test_step_of_alpha_is_bounded_by_the_clip(batch, clip):
    """With and without a clip it is the step of the formula; beta is not affected."""
    task = make(alpha_grad_clip=clip, beta_grad_clip=None, beta_penalty=0.1)
    parameters = paf_parameters(task.trainable_module)
    optimizer = torch.optim.SGD(parameters.values(), lr=1.)
    task.attach_optimizer(optimizer)
    task(*batch)['loss'].backward()
    (alpha, raw), (beta, raw_beta) = ((p.item(), p.grad.item()) for p in parameters.values())
    optimizer.step()
    new, new_beta = (p.item() for p in parameters.values())
    size = min(abs(raw), float('inf') if clip is None else clip)
    assert abs(raw) > 1e-3
    assert new - alpha == pytest.approx(-size * abs(raw) / raw, rel=1e-2)
    assert new_beta - beta == pytest.approx(-raw_beta, rel=1e-3)
