"""Compiled models compared with eager ones: same images and gradients, few graphs, current weights.

'aot_eager' traces, differentiates and guards as any backend does, and runs torch's own kernels: in float64 it has to
agree with the eager model up to the order of operations. One case goes through the real compiler.
"""
import gc
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import timm_paf
from timm_paf.attacks import PGD, CompiledModel, CompileSettings, eval_mode

TRACED = CompileSettings(backend='aot_eager')


def network(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), timm_paf.shared('pssilu')(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(6 * 36, 10)).to(dtype)
    with torch.no_grad():
        model(torch.rand(64, 3, 6, 6, dtype=dtype))  # statistics unlike those of a batch
    return model


def batch(n=9, dtype=torch.float64):
    """Images and the network's own labels."""
    x = torch.rand(n, 3, 6, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, network(dtype).eval()(x).argmax(1)


@pytest.fixture
def made():
    """Number of graphs compiled since the last call."""
    torch._dynamo.reset()
    seen = [counters['stats']['unique_graphs']]

    def count():
        seen.append(counters['stats']['unique_graphs'])
        return seen[-1] - seen[-2]
    return count


@pytest.mark.parametrize('settings, graphs', [
    ({}, 1), ({'norm': 'l1', 'eps': 3., 'loss': 'dlr', 'step_rule': 'momentum'}, 1), ({'mode': 'train'}, 0),
    ({'early_stop': True, 'eps': 0.01, 'restarts': 2}, 8)], ids=['default', 'l1', 'batch statistics', 'early stop'])
def test_images_are_those_of_the_eager_attack(settings, graphs, made):
    """One graph for all steps, radii and smaller batches; with early stop, two for each size down to an eighth."""
    settings = {'eps': 8 / 255, 'steps': 4, **settings}
    model, (x, y) = network(), batch(32)
    for n, share in ((32, 1.), (23, 0.5), (1, 0.7)):
        seeds, attacks = torch.arange(n), [PGD(**settings, compile=compile) for compile in (False, TRACED)]
        for attack in attacks:
            attack.eps *= share
        expected, found = (attack(model, x[:n], y[:n], seeds=seeds) for attack in attacks)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert bool(graphs) <= made() <= graphs


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Skipping serialization:UserWarning')  # torch 2.6 to itself
def test_real_compiler_reaches_the_same_loss_in_float32():
    """Rounding changes signs of gradients near 0, so images may differ; the loss may not."""
    model, (x, y) = network(torch.float32), batch(32, dtype=torch.float32)
    seeds = torch.arange(32)
    eager = PGD(eps='8/255')(model, x, y, seeds=seeds)
    compiled = PGD(eps='8/255', compile=True)(model, x, y, seeds=seeds)
    assert ((eager - compiled).abs() > 1e-5).double().mean() < 0.01
    assert compiled.min() >= 0 and compiled.max() <= 1 and (compiled - x).abs().max() <= 8 / 255 * (1 + 1e-5)
    with eval_mode(model), torch.no_grad():
        losses = [nn.functional.cross_entropy(model(images), y, reduction='none') for images in (eager, compiled)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-5)


def test_autocast_is_part_of_the_graph(made):
    model, (x, y) = network(torch.float32), batch(dtype=torch.float32)
    attack, seeds = PGD(eps=0.03, compile=TRACED), torch.arange(9)
    with torch.autocast('cpu', torch.bfloat16):
        expected = PGD(eps=0.03)(model, x, y, seeds=seeds)
        x_adv = attack(model, x, y, seeds=seeds)
    assert x_adv.dtype == torch.float32 and ((x_adv - expected).abs() > 1e-6).double().mean() < 0.05
    wide = attack(model, x, y, seeds=seeds)
    assert made() == 2 and not torch.equal(x_adv, wide)  # some slopes near 0 have another sign


def test_updated_weights_are_attacked_and_changed_layers_compiled_again(made):
    """A compiler that folds weights into its graph would attack the old ones (pytorch 108863)."""
    model, (x, y) = network(), batch()
    attack, plain = (PGD(eps=0.1, random_start=False, compile=compile) for compile in (TRACED, False))
    before = attack(model, x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    nn.functional.cross_entropy(model.train()(x), y).backward()
    made()
    optimizer.step()
    after = attack(model, x, y)
    assert made() == 0 and not torch.equal(before, after)
    torch.testing.assert_close(after, plain(model, x, y), rtol=0, atol=1e-12)
    model[2] = nn.Tanh()
    torch.testing.assert_close(attack(model, x, y), plain(model, x, y), rtol=0, atol=1e-12)
    gone = weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize('wrap', [
    lambda model: torch.compile(model, backend='eager'), lambda model: CompiledModel(model, compile=TRACED)],
    ids=['torch.compile', 'CompiledModel'])
def test_a_compiled_model_is_compiled_once(wrap, made):
    model, (x, y) = network(), batch()
    x_adv = PGD(eps=0.1, compile=TRACED)(wrap(model), x, y)
    assert made() == 1
    torch.testing.assert_close(x_adv, PGD(eps=0.1)(model, x, y), rtol=0, atol=1e-12)


def test_failing_compiler_means_eager_and_one_warning():
    class Untraceable(nn.Sequential):
        def forward(self, x):
            torch._dynamo.graph_break()
            return super().forward(x)

    model, (x, y) = Untraceable(network()), batch()
    attack = PGD(eps=0.1, compile=TRACED)
    with pytest.warns(RuntimeWarning, match='Untraceable runs uncompiled') as found:
        x_adv = attack(model, x, y)
        attack(model, x[:5], y[:5])
        PGD(eps=0.1, norm='l2', compile=TRACED)(model, x, y)
    assert len(found) == 1
    torch.testing.assert_close(x_adv, PGD(eps=0.1)(model, x, y), rtol=0, atol=0)


@pytest.mark.parametrize('value, message', [
    ('fast', "compile = 'fast'"), (3, 'compile = 3'),
    (dict(backend='inductr'), "backend = 'inductr'"), (dict(batch_size=0), 'batch_size = 0'),
], ids=str)
def test_bad_settings_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        PGD(eps=0.1, compile=CompileSettings(**value) if isinstance(value, dict) else value)


def test_gradients_are_available_repeatedly(made):
    model, (x, _) = network().eval().requires_grad_(False), batch()
    compiled = CompiledModel(model, compile=TRACED, halves=True)
    for n in (9, 4, 1):
        images = x[:n].clone().requires_grad_()
        logits = compiled(images)
        torch.testing.assert_close(logits, model(x[:n]), rtol=0, atol=1e-12)
        for column in (0, 1):  # as FAB does
            (gradient,) = torch.autograd.grad(logits[:, column].sum(), images, retain_graph=True)
            plain = x[:n].clone().requires_grad_()
            (expected,) = torch.autograd.grad(model(plain)[:, column].sum(), plain)
            torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x[:n]), model(x[:n]), rtol=0, atol=1e-12)
    assert made() == 2 * 3


def test_training_mode_and_training_are_those_of_the_model():
    model, (x, _) = network(), batch()
    model[3].p = 0.
    compiled, other = CompiledModel(model, compile=TRACED), network()
    other[3].p = 0.
    for n in (9, 4):
        torch.testing.assert_close(compiled(x[:n]), other(x[:n]), rtol=0, atol=1e-12)
    assert torch.equal(model[1].running_mean, other[1].running_mean)
    compiled.eval()(x).sum().backward()
    assert model[0].weight.grad is not None
