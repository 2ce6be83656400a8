"""Adversarial weight perturbation: size and direction, and that perturbed weights are never read by accident."""
import copy
import io

import pytest
import timm
import torch
from timm.layers import set_reentrant_ckpt
from torch.nn import functional as F
from torch.testing import assert_close

from timm_paf.attacks import PGD
from timm_paf.tasks import TaskOptions, WeightPerturbation, create_task

GAMMA = 0.05


def make(model, name='pgd-at', gamma=GAMMA, **options):
    attack = PGD(eps=0.2, steps=2, loss='kl' if name == 'trades' else 'ce')
    return create_task(name, model, attack, options=TaskOptions(**{
        'beta_penalty': 0., 'awp_gamma': gamma, **options}))


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(model, weights):
    return all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize('name', ['pgd-at', 'trades'])
def test_gamma_zero_is_the_base_bit_for_bit(name, network, batch):
    results = []
    for options in ({}, dict(awp_gamma=0.), dict(awp_gamma=0.01)):
        attack = PGD(eps=0.2, steps=2)
        task = create_task(name, network(norm=True), attack, options=TaskOptions(**options))
        optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            task(*batch)['loss'].backward()
            optimizer.step()
        results.append(task.trainable_module.state_dict())
    base, zero, some = results
    assert all(torch.equal(base[key], zero[key]) for key in base)
    assert not torch.equal(base['conv1.weight'], some['conv1.weight'])


def test_step_is_gamma_times_the_norm_along_the_gradient(network, batch):
    """Per tensor, along a gradient computed without the class; tensors of rank 1 do not change."""
    model, twin = network(norm=True), network(norm=True)
    before = weights_of(model)
    F.cross_entropy(twin(batch[0]), batch[1]).backward()
    perturbation = WeightPerturbation(GAMMA)
    perturbation.perturb(model, lambda: F.cross_entropy(model(batch[0]), batch[1]))
    assert perturbation.active
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        moved = p.detach() - before[name]
        if p.dim() <= 1:
            assert moved.count_nonzero() == 0
            continue
        assert moved.norm().item() == pytest.approx(GAMMA * before[name].norm().item(), rel=1e-4)
        assert F.cosine_similarity(moved.flatten(), q.grad.flatten(), dim=0) > 0.9999
        assert p.grad is None
    assert model.norm1.num_batches_tracked == 0  # statistics are as they were
    assert F.cross_entropy(model(batch[0]), batch[1]) > F.cross_entropy(network(norm=True)(batch[0]), batch[1])
    perturbation.restore()
    assert same(model, before) and not perturbation.active


def test_gradient_is_that_at_the_perturbed_weights_and_the_weights_come_back(network, batch):
    task, model = make(network()), network()
    before = weights_of(task.trainable_module)
    result = task(*batch)
    assert not same(task.trainable_module, before)
    result['loss'].backward()
    assert same(task.trainable_module, before)

    loss = F.cross_entropy(model(result['x_adv']), batch[1])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            if p.dim() > 1:
                p += GAMMA * p.norm() * g / g.norm()
    loss = F.cross_entropy(model(result['x_adv']), batch[1])
    assert_close(result['loss'].detach(), loss.detach())
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for p, g in zip(task.trainable_module.parameters(), expected, strict=True):
        assert_close(p.grad, g, rtol=1e-4, atol=1e-6)


def load_elsewhere(task, before):
    file = io.BytesIO()
    torch.save(task.get_checkpoint_state(), file)
    file.seek(0)
    return torch.load(file)['state_dict']


READERS = {
    'state dict': lambda task, batch: task.trainable_module.state_dict(),
    'state dict of the task': lambda task, batch: task.state_dict(),
    'checkpoint': load_elsewhere,
    'evaluation': lambda task, batch: task.trainable_module.eval()(batch[0]),
    'average': lambda task, batch: task.update_ema(step=1),
    'another step': lambda task, batch: task(*batch)['loss'].backward(),
    'an optimizer step': lambda task, batch: task.optimizer.step(),
}


@pytest.mark.parametrize('read', READERS)
def test_readers_before_backward_get_the_unperturbed_weights(read, network, batch):
    task = make(network())
    task.setup_ema(decay=0.5)
    task.optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.1)
    task.attach_optimizer(task.optimizer)
    before = weights_of(task.trainable_module)
    clean = task.trainable_module(batch[0])
    lost = task(*batch)['loss']
    found = READERS[read](task, batch)
    assert same(task.trainable_module, before)
    if 'state' in read or read == 'checkpoint':
        prefix = 'trainable_module.' if 'task' in read else ''
        assert all(torch.equal(found[prefix + name], value) for name, value in before.items())
    elif read == 'evaluation':
        assert torch.equal(found, clean)
    elif read == 'average':
        assert same(task.trainable_module_ema.module, before)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        lost.backward()  # an error, not a gradient at other weights


@pytest.mark.parametrize('read', ['checkpoint', 'evaluation'])
def test_readers_of_a_compiled_model_get_the_unperturbed_weights(read, network, batch, reference):
    """Its state dict comes from the model inside."""
    task = make(network())
    inner = task.trainable_module
    clean = inner(batch[0])
    compiled = task.compile(backend='eager')
    before = weights_of(inner)
    task(*batch)
    if read == 'checkpoint':
        state = task.get_checkpoint_state()['state_dict']
        assert all(torch.equal(state[name], value) for name, value in before.items())
    else:
        assert torch.equal(compiled(batch[0]), clean)
    assert same(inner, before)


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize('passes', [0, 1], ids=['in the gradient of the weights', 'in the loss'])
def test_an_exception_leaves_the_unperturbed_weights(passes, network, batch):
    task = create_task('plain', network(norm=True), options=TaskOptions(awp_gamma=GAMMA))
    before = weights_of(task.trainable_module)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) > passes:
            raise Interrupted

    handle = task.trainable_module.fc.register_forward_hook(fail)
    with pytest.raises(Interrupted):
        task(*batch)
    assert same(task.trainable_module, before)
    assert task.trainable_module.norm1.track_running_stats
    handle.remove()
    task(*batch)['loss'].backward()


def test_a_backward_pass_that_fails_leaves_them_to_the_next_reader(network, batch):
    task = make(network())
    before = weights_of(task.trainable_module)

    def fail(_):
        raise Interrupted

    handle = task.trainable_module.conv1.weight.register_hook(fail)
    with pytest.raises(Interrupted):
        task(*batch)['loss'].backward()
    handle.remove()
    assert all(torch.equal(task.state_dict()[f'trainable_module.{k}'], v) for k, v in before.items())
    task(*batch)['loss'].backward()
    assert same(task.trainable_module, before)


def test_nothing_is_left_on_the_model(network, batch):
    """Hooks would be copied into averages and pickles."""
    task = make(network())
    task(*batch)['loss'].backward()
    model = task.trainable_module
    assert not model._forward_pre_hooks and not model._state_dict_pre_hooks
    torch.save(copy.deepcopy(model), io.BytesIO())


def test_scaled_and_accumulated_losses(network, batch):
    """Two micro-batches at their own perturbed weights: the mean of their gradients."""
    x, y = batch
    halves = [(x[:4], y[:4]), (x[4:], y[4:])]
    task = make(network(), name='plain')
    before = weights_of(task.trainable_module)
    for half in halves:
        (task(*half)['loss'] / 2 * 1024).backward()
        assert same(task.trainable_module, before)
    found = [p.grad / 1024 for p in task.trainable_module.parameters()]
    parts = []
    for half in halves:
        one = make(network(), name='plain')
        one(*half)['loss'].backward()
        parts.append([p.grad for p in one.trainable_module.parameters()])
    for gradient, first, second in zip(found, *parts, strict=True):
        assert_close(gradient, (first + second) / 2)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_computes_with_the_perturbed_weights(dtype, network, batch):
    """Its cache holds the unperturbed weights in half precision, from the pass before."""
    losses = {}
    for gamma in (0., 0.5):
        task = make(network(), name='plain', gamma=gamma)
        with torch.autocast('cpu', dtype=dtype):
            losses[gamma] = task(*batch)['loss'].item()
    exact = make(network(), name='plain', gamma=0.5)(*batch)['loss'].item()
    assert losses[0.5] > losses[0.] + 0.03
    assert losses[0.5] == pytest.approx(exact, rel=0.002)


def test_reentrant_recomputation_is_refused(batch):
    """It hides the weights of its blocks from autograd.grad, so that they would not be perturbed."""
    model = timm.create_model('wrn10_2_pssilu', in_chans=1)
    model.set_grad_checkpointing()
    task = make(model, name='plain')
    set_reentrant_ckpt(True)
    try:
        with pytest.raises(ValueError, match='reentrant gradient checkpointing'):
            task(*batch)
    finally:
        set_reentrant_ckpt(False)


def test_networks_of_timm(batch):
    """A shared activation, gradient checkpointing, and a step of the optimizer."""
    model = timm.create_model('wrn10_2_pssilu', in_chans=1)
    model.set_grad_checkpointing()
    task = make(model, name='trades')
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    task.attach_optimizer(optimizer)
    before = weights_of(model)
    task(*batch)['loss'].backward()
    assert same(model, before)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, p in model.named_parameters():
        if not name.endswith('beta'):
            assert_close(p.detach(), before[name] - 0.1 * gradients[name])


def test_a_weight_without_a_gradient_stays(network, batch):
    model = network()
    model.fc.weight.requires_grad_(False)
    perturbation = WeightPerturbation(GAMMA)
    perturbation.perturb(model, lambda: model.conv1.weight.square().sum())
    before = network()
    assert torch.equal(model.fc.weight, before.fc.weight)
    assert torch.equal(model.conv2.weight, before.conv2.weight)
    assert_close(model.conv1.weight, (1 + GAMMA) * before.conv1.weight)


def test_recomputation_in_the_backward_pass_uses_the_perturbed_weights(batch):
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = timm.create_model('wrn10_2_pssilu', in_chans=1)
        model.set_grad_checkpointing(recompute)
        make(model, name='plain')(*batch)['loss'].backward()
        results.append([p.grad for p in model.parameters()])
    assert_close(*results)
