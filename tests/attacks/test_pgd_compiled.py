"""The compiled step compared with the eager one: same images, one graph, no waiting, no recompilation.

'aot_eager' traces, differentiates and guards as any backend does, and runs torch's own kernels: in float64 it has to
agree with the eager attack up to the order of operations. One case goes through the real compiler.
"""
import gc
import weakref

import pytest
import timm.optim.kron
import torch
from torch import nn
from torch._dynamo.utils import counters

import timm_paf
from timm_paf.attacks import PGD, CompiledModel, CompileSettings, eval_mode
from timm_paf.attacks.compiled import bare_model

TRACED = CompileSettings(backend='aot_eager')


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


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
    seen = [counters['stats']['unique_graphs']]

    def count():
        seen.append(counters['stats']['unique_graphs'])
        return seen[-1] - seen[-2]
    return count


@pytest.mark.parametrize('settings', [
    dict(norm='l1', eps=3., loss='dlr', step_rule='momentum'), dict(norm='l2', eps=0.5, loss='kl', mode='train'),
    dict(step_rule='momentum', early_stop=True, eps=0.01, restarts=2), dict(loss=lambda logits, y: -logits[:, 0] * y),
    *map(slow, [
        dict(), dict(loss='margin'), dict(loss='dlr-targeted', target_classes=3), dict(step_rule='cosine'),
        dict(early_stop=True, eps=0.01), dict(mode='train'), dict(early_stop=True, restarts=2, norm='l2', eps=0.05)]),
], ids=lambda settings: '-'.join(map(str, settings)))
def test_images_are_those_of_the_eager_attack(settings, made):
    settings = {'eps': 8 / 255, 'steps': 4, **settings}
    model, (x, y) = network(), batch()
    seeds = torch.arange(len(x))
    expected = PGD(**settings)(model, x, y, seeds=seeds)
    found = PGD(**settings, compile=TRACED)(model, x, y, seeds=seeds)
    assert made() >= 1 and not torch.equal(expected, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('settings', [
    dict(loss='ce-targeted', step_rule='momentum'), slow(dict()), slow(dict(norm='l2', eps=0.5)),
    slow(dict(norm='l1', eps=3.))], ids=str)
def test_one_graph_for_steps_sizes_radii_and_layouts(settings, made):
    """The last batch of an epoch, a warm-up of the radius, another number of steps, another attack of the same kind."""
    model, (x, y) = network(), batch()
    call = dict(target=(y + 1) % 10) if 'loss' in settings else {}
    attack = PGD(**{'eps': 8 / 255, 'steps': 3, **settings}, compile=TRACED)
    attack(model, x, y, **call)
    assert made() == 1
    with torch.compiler.set_stance('fail_on_recompile'):
        for n, share in ((9, 0.3), (5, 0.7), (1, 1.)):
            some = {name: value[:n] for name, value in call.items()}
            other = PGD(**{'eps': 8 / 255, **settings}, steps=4, compile=TRACED, seed=n)
            other.eps, other.step_size = other.eps * share, other.step_size * share
            plain = PGD(**{'eps': 8 / 255, **settings}, steps=4, seed=n)
            plain.eps, plain.step_size = other.eps, other.step_size
            torch.testing.assert_close(
                other(model, x[:n], y[:n], **some), plain(model, x[:n], y[:n], **some), rtol=0, atol=1e-12)
        attack(model, x.expand(9, -1, -1, -1).transpose(2, 3).contiguous().transpose(2, 3), y, **call)
    assert made() == 0


def test_batch_statistics_are_not_those_of_copies(made):
    """In mode 'train' a batch of another size runs uncompiled, because padding would change its statistics."""
    model, (x, y) = network(), batch()
    attack = PGD(eps=0.1, mode='train', compile=TRACED)
    attack(model, x, y)
    assert made() == 1
    seeds = torch.arange(5)
    expected = PGD(eps=0.1, mode='train')(model, x[:5], y[:5], seeds=seeds)
    torch.testing.assert_close(attack(model, x[:5], y[:5], seeds=seeds), expected, rtol=0, atol=1e-12)
    attack(model, *batch(12))
    assert made() == 0


def test_packed_batches_have_few_sizes(made):
    """Robust images continue in a whole batch, or in a half, a quarter or an eighth of it."""
    model, (x, y) = network(), batch(32)
    watched = network()
    watched[0].register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    for n in (32, 23):
        settings, sizes = dict(eps=0.02, steps=20, early_stop=True), []
        expected = PGD(**settings)(watched, x[:n], y[:n], seeds=torch.arange(n))
        assert len(set(sizes)) > 2  # it does shrink
        compile = CompileSettings(backend='aot_eager', batch_size=32)
        found = PGD(**settings, compile=compile)(model, x[:n], y[:n], seeds=torch.arange(n))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert 2 <= made() <= 4 * 2  # a step and a pass for each size


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


@pytest.mark.parametrize('restarts', [1, slow(2)])
def test_autocast_is_part_of_the_graph(restarts, made):
    model, (x, y) = network(torch.float32), batch(dtype=torch.float32)
    attack = PGD(eps=0.03, restarts=restarts, compile=TRACED)
    seeds = torch.arange(9)
    with torch.autocast('cpu', torch.bfloat16):
        expected = PGD(eps=0.03, restarts=restarts)(model, x, y, seeds=seeds)
        x_adv = attack(model, x, y, seeds=seeds)
        made()
        attack(model, x[:4], y[:4])
    assert x_adv.dtype == torch.float32 and ((x_adv - expected).abs() > 1e-6).double().mean() < 0.05
    assert made() == 0 or restarts > 1
    wide = attack(model, x, y, seeds=seeds)
    assert made() >= 1  # the precision is no number: without autocast it is another graph
    assert not torch.equal(x_adv, x) and not torch.equal(x_adv, wide)  # some slopes near 0 have another sign


def test_nothing_waits_for_the_device():
    model, (x, y) = network(torch.float32), batch(dtype=torch.float32)
    attack = PGD(eps=8 / 255, norm='l2', step_rule='momentum', loss='kl', compile=TRACED)
    attack(model, x, y)
    attack.eps = 0.01
    with torch.profiler.profile() as profile:
        attack(model, x, y)
        attack(model, x[:4], y[:4])
    operations = {event.key for event in profile.key_averages()}
    assert any('conv' in name for name in operations)
    assert not operations & {'aten::item', 'aten::_local_scalar_dense', 'aten::is_nonzero', 'aten::nonzero'}


def test_updated_weights_are_attacked_and_changed_layers_compiled_again(made):
    model, (x, y) = network(), batch()
    attack, plain = (PGD(eps=0.1, random_start=False, compile=compile) for compile in (TRACED, False))
    before = attack(model, x, y)
    made()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    after = attack(model, x, y)
    assert made() == 0 and not torch.equal(before, after)
    torch.testing.assert_close(after, plain(model, x, y), rtol=0, atol=1e-12)
    model[2] = nn.Tanh()
    torch.testing.assert_close(attack(model, x, y), plain(model, x, y), rtol=0, atol=1e-12)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None  # its graphs are freed with it


def test_a_compiled_model_is_attacked_by_one_graph(made):
    """torch.compile's wrapper, whose own graph would break the step in two."""
    model, (x, y) = network(), batch()
    wrapped = torch.compile(model, backend='eager')
    x_adv = PGD(eps=0.1, compile=TRACED)(wrapped, x, y)
    assert made() == 1 and bare_model(CompiledModel(wrapped)) is model
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


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__.startswith('2.6'), reason='does not guard what hooks hold')
def test_a_graph_that_changes_all_the_time_is_given_up():
    """A hook that extends a list, whose length torch guards: torch stops recompiling at some point."""
    assert timm.optim.kron is not None  # which lifts the limit for everybody
    model, (x, y), calls = network(), batch(), []
    model.register_forward_hook(lambda *_: calls.append(len(calls)))
    attack = PGD(eps=0.1, steps=20, random_start=False, compile=TRACED)
    with pytest.warns(RuntimeWarning, match='Sequential runs uncompiled'):
        x_adv = attack(model, x, y)
    torch.testing.assert_close(x_adv, PGD(eps=0.1, steps=20, random_start=False)(model, x, y), rtol=0, atol=1e-12)


@pytest.mark.parametrize('value, message', [
    ('fast', "compile = 'fast'"), (3, 'compile = 3'),
    (dict(backend='inductr'), "backend = 'inductr'"), (dict(batch_size=0), 'batch_size = 0'),
], ids=str)
def test_bad_settings_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        PGD(eps=0.1, compile=CompileSettings(**value) if isinstance(value, dict) else value)


def test_bad_losses_raise_their_own_errors():
    with pytest.raises(ValueError, match=r'the loss returns a tensor of shape \(\)'):
        PGD(eps=0.1, loss=lambda logits, y: logits.sum(), compile=TRACED)(
            nn.Flatten(), torch.rand(2, 3, 6, 6), torch.zeros(2).long())


def test_compiled_model_gives_logits_and_gradients_repeatedly(made):
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
    assert made() <= 2 * 3


def test_compiled_model_in_training_is_the_model():
    model, (x, _) = network(), batch()
    model[3].p = 0.
    compiled, other = CompiledModel(model, compile=TRACED), network()
    other[3].p = 0.
    for n in (9, 4):
        torch.testing.assert_close(compiled(x[:n]), other(x[:n]), rtol=0, atol=1e-12)
    assert torch.equal(model[1].running_mean, other[1].running_mean)


@pytest.mark.parametrize('settings, graphs', [
    (dict(), False), (dict(mode='reduce-overhead'), True), (dict(mode='max-autotune'), True),
    (dict(mode='max-autotune-no-cudagraphs'), False), (dict(backend='cudagraphs'), True)], ids=str)
def test_results_that_the_next_call_overwrites_are_copied(settings, graphs):
    assert CompileSettings(**settings).cuda_graphs is graphs
    with torch._inductor.config.patch({'triton.cudagraphs': True}):
        assert CompileSettings().cuda_graphs
