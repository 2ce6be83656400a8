"""Adversarial weight perturbation: size and direction, and that perturbed weights are never read by accident."""
import copy
import io

import pytest
import timm
import torch
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


def test_gradient_is_that_at_the_perturbed_weights_and_the_weights_come_back(network, batch):
    """Each tensor of rank above 1 moves along its gradient; statistics move once."""
    task, model = make(network(norm=True)), network(norm=True)
    before = weights_of(task.trainable_module)
    result = task(*batch)
    assert not same(task.trainable_module, before)
    result['loss'].backward()
    assert same(task.trainable_module, before) and task.trainable_module.norm1.num_batches_tracked == 1

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


def load_elsewhere(task, batch):
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


@pytest.mark.parametrize('compiled, read', [
    *[(False, read) for read in READERS], (True, 'checkpoint'), (True, 'evaluation')])
def test_readers_before_backward_get_the_unperturbed_weights(compiled, read, network, batch, reference):
    task = make(network())
    inner = task.trainable_module
    task.setup_ema(decay=0.5)
    task.optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    task.attach_optimizer(task.optimizer)
    before, clean = weights_of(inner), inner(batch[0])
    if compiled:  # its state dict comes from the model inside
        task.compile(backend='eager')
    lost = task(*batch)['loss']
    found = READERS[read](task, batch)
    assert same(inner, before)
    if 'state' in read or read == 'checkpoint':
        prefix = 'trainable_module.' if 'task' in read else ''
        assert all(torch.equal(found[prefix + name], value) for name, value in before.items())
    elif read == 'evaluation':
        assert torch.equal(found, clean)
    elif read == 'average':
        assert same(task.trainable_module_ema.module, before)
    if not compiled:
        with pytest.raises(RuntimeError, match='modified by an inplace operation'):
            lost.backward()  # an error, not a gradient at other weights


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize('passes', [0, 1], ids=['in the gradient of the weights', 'in the loss'])
def test_an_exception_leaves_the_unperturbed_weights(passes, network, batch):
    task = create_task('plain', network(norm=True), options=TaskOptions(awp_gamma=GAMMA))
    model = task.trainable_module
    before, calls = weights_of(model), []

    def fail(*_):
        calls.append(1)
        if len(calls) > passes:
            raise Interrupted

    handle = model.fc.register_forward_hook(fail)
    with pytest.raises(Interrupted):
        task(*batch)
    assert same(model, before) and model.norm1.track_running_stats
    handle.remove()
    handle = model.conv1.weight.register_hook(fail)
    with pytest.raises(Interrupted):
        task(*batch)['loss'].backward()  # the next reader restores them
    handle.remove()
    assert all(torch.equal(task.state_dict()[f'trainable_module.{k}'], v) for k, v in before.items())
    task(*batch)['loss'].backward()
    assert same(model, before)


def test_nothing_is_left_on_the_model(network, batch):
    """Hooks would be copied into averages and pickles."""
    task = make(network())
    task(*batch)['loss'].backward()
    model = task.trainable_module
    assert not model._forward_pre_hooks and not model._state_dict_pre_hooks
    torch.save(copy.deepcopy(model), io.BytesIO())


def test_scaled_and_accumulated_losses(network, batch):
    """Two micro-batches at their own perturbed weights: the mean of their gradients."""
    halves = list(zip(*(tensor.chunk(2) for tensor in batch), strict=True))
    both, *ones = [make(network(), name='plain') for _ in range(3)]
    for half, one in zip(halves, ones, strict=True):
        (both(*half)['loss'] / 2 * 1024).backward()
        one(*half)['loss'].backward()
    for p, first, second in zip(*(task.trainable_module.parameters() for task in (both, *ones)), strict=True):
        assert_close(p.grad / 1024, (first.grad + second.grad) / 2)


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


def test_a_weight_without_a_gradient_stays(network, batch):
    model = network()
    model.fc.weight.requires_grad_(False)
    perturbation = WeightPerturbation(GAMMA)
    perturbation.perturb(model, lambda: model.conv1.weight.square().sum())
    before = network()
    assert torch.equal(model.fc.weight, before.fc.weight)
    assert torch.equal(model.conv2.weight, before.conv2.weight)
    assert_close(model.conv1.weight, (1 + GAMMA) * before.conv1.weight)


def test_networks_of_timm_with_recomputation(batch):
    """The backward pass computes again with the perturbed weights; then comes a step of the optimizer."""
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = timm.create_model('wrn10_2_pssilu', in_chans=1)
        model.set_grad_checkpointing(recompute)
        task, before = make(model, name='plain'), weights_of(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        task.attach_optimizer(optimizer)
        task(*batch)['loss'].backward()
        assert same(model, before)
        results.append({name: p.grad.clone() for name, p in model.named_parameters()})
        optimizer.step()
        for name, p in model.named_parameters():
            if not name.endswith(('alpha', 'beta')):  # which are clipped
                assert_close(p.detach(), before[name] - 0.1 * results[-1][name])
    assert_close(*results)
