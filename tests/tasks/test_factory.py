"""Every task by name: the effect of each option, on and off."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from timm_paf.attacks import PGD
from timm_paf.tasks import TASKS, TaskOptions, create_task

ATTACKS = {'plain': None, 'pgd-at': 'ce', 'trades': 'kl', 'mart': 'ce'}
PURE = dict(beta_penalty=0.)


def attack(loss='ce', **settings):
    return None if loss is None else PGD(**{**dict(eps=0.2, steps=3, loss=loss), **settings})


def make(name, model, **options):
    return create_task(name, model, attack(ATTACKS[name]), options=TaskOptions(**{**PURE, **options}))


def gradients(task, batch):
    """Loss and gradients of one step."""
    task.trainable_module.zero_grad()
    result = task(*batch)
    result['loss'].backward()
    return result, {name: p.grad.clone() for name, p in task.trainable_module.named_parameters()}


def plain_gradients(model, x, y, **settings):
    model.zero_grad()
    loss = F.cross_entropy(model(x), y, **settings)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize('name', TASKS)
def test_loss_falls(name, network, batch):
    task = make(name, network(norm=True))
    if task.attack is not None:
        task.attack.eps, task.attack.step_size = 0.02, 0.01
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        result, _ = gradients(task, batch)
        optimizer.step()
        losses.append(result['loss'].item())
    assert losses[-1] < 0.9 * losses[0]
    for key in result.keys() - {'loss'}:
        assert not result[key].requires_grad, f'{key} keeps a graph'


@pytest.mark.parametrize('name', ['pgd-at', 'trades'])
def test_at_radius_zero_the_attacked_images_are_the_images(name, network, batch):
    task = make(name, network())
    task.attack.eps = 0.
    result, found = gradients(task, batch)
    assert torch.equal(result['x_adv'], batch[0])
    loss, expected = plain_gradients(network(), *batch)  # the KL divergence and its gradient are 0
    assert_close((result['loss'].detach(), found), (loss, expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', ['trades', 'mart'])
@pytest.mark.parametrize('soft', [False, True], ids=['classes', 'probabilities'])
def test_paired_losses_see_both_kinds_of_image(name, soft, network, batch):
    """The task against a loss from two passes, which equals one pass in a network without batch normalisation."""
    x, y = batch
    target = torch.randn(8, 4).softmax(1) if soft else y
    task = make(name, network(), trades_beta=2., mart_beta=2., smoothing=0.1)
    result, found = gradients(task, (x, target))
    model = network()
    clean, adv = model(x), model(result['x_adv'])
    p = clean.softmax(1)
    weights = 1. if name == 'trades' else 1 - p.gather(1, (target.argmax(1) if soft else y)[:, None]).squeeze(1)
    kl = (p * (clean.log_softmax(1) - adv.log_softmax(1))).sum(1)
    if name == 'trades':
        loss = F.cross_entropy(clean, target, label_smoothing=0.1)
    else:
        wrong = adv.softmax(1).scatter(1, (target.argmax(1) if soft else y)[:, None], 0.).max(1).values
        loss = F.cross_entropy(adv, target, label_smoothing=0.1) - (1 - wrong).log().mean()
    loss = loss + 2 * (weights * kl).mean()
    loss.backward()
    assert_close(result['loss'].detach(), loss.detach())
    assert_close(found, {n: p.grad for n, p in model.named_parameters()}, rtol=1e-4, atol=1e-6)
    assert_close(result['output'], adv.detach())
    assert_close(result['output_clean'], clean.detach())


@pytest.mark.parametrize('name', ['plain', 'pgd-at'])
def test_smoothing_is_that_of_the_cross_entropy(name, network, batch):
    result, found = gradients(make(name, network(), smoothing=0.2), batch)
    loss, expected = plain_gradients(network(), result['x_adv'], batch[1], label_smoothing=0.2)
    assert_close((result['loss'].detach(), found), (loss, expected))


@pytest.mark.parametrize('name', TASKS)
def test_running_statistics_move_once_a_step(name, network, batch):
    """From the images of the loss: in TRADES and MART, both halves together."""
    task = make(name, network(norm=True), awp_gamma=0.01)
    seen = []
    task.trainable_module.conv1.register_forward_hook(
        lambda module, _, output: seen.append(output.detach()) if module.training else None)
    task(*batch)
    norm, last = task.trainable_module.norm1, seen[-1]
    assert norm.num_batches_tracked == 1
    assert len(last) == (16 if name in ('trades', 'mart') else 8)
    assert_close(norm.running_mean, 0.1 * last.mean((0, 2, 3)))


@pytest.mark.parametrize('name, passes', [('plain', [1, 0]), ('pgd-at', [1, 3]), ('trades', [1, 4]), ('mart', [1, 3])])
def test_clean_predictions_are_computed_once(name, passes, network, batch):
    """Training passes, and passes of the attack: one per step, and in TRADES one more for the clean prediction."""
    task = make(name, network())
    modes = []
    task.trainable_module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    task(*batch)
    assert [modes.count(True), modes.count(False)] == passes


@pytest.mark.parametrize('name', TASKS)
def test_penalty_is_added_to_every_loss(name, network, batch):
    task, without = make(name, network(), beta_penalty=3.), make(name, network())
    difference = task(*batch)['loss'] - without(*batch)['loss']
    assert difference.item() == pytest.approx(3 * 0.1, rel=1e-4)


@pytest.mark.parametrize('name, dtype', [
    ('pgd-at', torch.float16), ('trades', torch.bfloat16), ('mart', torch.bfloat16)], ids=str)
def test_autocast(name, dtype, network, batch):
    task, exact = make(name, network(), awp_gamma=0.01), make(name, network(), awp_gamma=0.01)
    with torch.autocast('cpu', dtype=dtype):
        result, found = gradients(task, batch)
    _, expected = gradients(exact, batch)
    assert result['loss'].dtype == torch.float32
    for key, gradient in expected.items():
        assert F.cosine_similarity(found[key].flatten(), gradient.flatten(), dim=0) > 0.95, key


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo of torch 2.6, of its own
def test_compiled_model(network, batch):
    """The attack gets it too, since ten passes of twelve are the attack's."""
    task, eager = make('mart', network(norm=True), awp_gamma=0.01), make('mart', network(norm=True), awp_gamma=0.01)
    compiled, plain = task.compile(backend='eager'), task.attack
    task.attack = lambda model, x, y: plain(model, x, y) if model is compiled else pytest.fail('not compiled')
    _, expected = gradients(eager, batch)
    task(*batch)['loss'].backward()
    found = {n: p.grad for n, p in task.trainable_module._orig_mod.named_parameters()}
    assert_close(found, expected)
    assert task.trainable_module._orig_mod.norm1.num_batches_tracked == 1


@pytest.mark.parametrize('make_error, message', [
    (lambda m: create_task('pgd', m, attack()), "task 'pgd': expected one of plain, pgd-at, trades, mart"),
    (lambda m: create_task('trades', m), 'attack is None'),
    (lambda m: create_task('mart', m, attack(), criterion=nn.CrossEntropyLoss()), 'takes no criterion'),
    (lambda m: create_task(
        'plain', m, criterion=nn.CrossEntropyLoss(), options=TaskOptions(smoothing=0.1)), 'set the smoothing in'),
    (lambda m: create_task('pgd-at', m, lambda model, x, y: x, options=TaskOptions(eps_warmup_updates=5)),
     'has no float `eps`'),
    (lambda m: create_task('plain', m, options=TaskOptions(beta_bound=0.05)), r'act1.beta = \[0.1000.*expected .*0.05'),
], ids=['unknown', 'no attack', 'criterion', 'smoothing twice', 'warm-up', 'beta outside'])
def test_errors(make_error, message, network):
    with pytest.raises(ValueError, match=message):
        make_error(network())


def test_two_losses_may_share_a_backward_pass(network, batch):
    task, apart = make('trades', network()), make('trades', network())
    (task(*batch)['loss'] + task(*batch)['loss']).backward()
    for _ in range(2):
        apart(*batch)['loss'].backward()
    for p, q in zip(task.parameters(), apart.parameters(), strict=True):
        assert_close(p.grad, q.grad)
