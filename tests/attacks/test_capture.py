"""Recorded steps of an attack: what needs no GPU is tested with a stand-in for CUDA graphs."""
import copy
import functools
import gc
import weakref

import pytest
import torch
from torch import nn

from timm_paf.attacks import PGD, CompiledModel, autoattack
from timm_paf.attacks import capture as capture_module
from timm_paf.attacks.capture import ModelGraphs, graphs_of, release_graphs
from timm_paf.tasks import AdversarialTrainingTask

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]
SETTINGS = {
    'linf': {}, 'l2': {'norm': 'l2', 'eps': 0.5}, 'l1': {'norm': 'l1', 'eps': 4.}, 'kl': {'loss': 'kl'},
    'momentum': {'step_rule': 'momentum'}, 'cosine': {'step_rule': 'cosine'}, 'batch statistics': {'mode': 'train'},
    'restarts': {'restarts': 2, 'early_stop': True}, 'targeted': {'loss': 'ce-targeted', 'target_classes': 2}}


class StandIn:
    """Records by running a function again at each replay; its results lie in the same memory every time."""

    def __init__(self):
        self.recorded = 0

    def record(self, function):
        self.recorded += 1
        results = function()

        def replay():
            for result, new in zip(results, function(), strict=True):
                result.copy_(new)
        return results, replay

    def record_gradient(self, function, x):
        self.recorded += 1
        results = function(x)
        made = [results]
        memory = results.detach().clone(), torch.ones_like(results), torch.zeros_like(x)

        def forward():
            with torch.enable_grad():
                made[0] = function(x)
            memory[0].copy_(made[0].detach())

        def backward():
            memory[2].copy_(torch.autograd.grad(made[0], x, memory[1], retain_graph=True)[0])
        return memory, forward, backward


@pytest.fixture
def graphs(monkeypatch):
    """The stand-in's graphs of each model, in place of those of a GPU."""
    made = weakref.WeakKeyDictionary()

    def of(model, x):
        return graphs_of(model, x) if x.is_cuda else made.setdefault(model, ModelGraphs(StandIn()))
    monkeypatch.setattr('timm_paf.attacks.pgd.graphs_of', of)
    monkeypatch.setattr('timm_paf.attacks.autoattack_model.graphs_of', of)
    yield made
    release_graphs()


def network(device='cpu'):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 36, 5)).to(device)


def batch(n=12, device='cpu', seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 3, 8, 8, generator=generator).to(device),
            torch.randint(5, (n,), generator=generator).to(device))


def same(ours, eager, rounding=0.):
    """Equal on a CPU; on a GPU other algorithms may turn the sign of a gradient near 0, at a few pixels."""
    if ours.device.type == 'cpu':
        torch.testing.assert_close(ours, eager, rtol=0, atol=rounding)
    assert ((ours - eager).abs() > 1e-3).double().mean() < 0.01


def attack(capture='auto', **changes):
    return PGD(**{'eps': 0.1, 'steps': 3, 'capture': capture, **changes})


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('settings', SETTINGS.values(), ids=SETTINGS)
def test_images_are_those_of_the_eager_attack(settings, device, graphs):
    model, (x, y) = network(device), batch(device=device)
    for x, y in (batch(device=device), batch(7, device, seed=2), batch(device=device, seed=3)):
        given = {'clean_logits': model.eval()(x).detach()} if 'loss' in settings else {}
        eager, ours = (attack(how, **settings)(model, x, y, **given) for how in ('none', 'auto'))
        same(ours, eager, rounding=1e-6 if attack(**settings).norm == 'l2' else 0)  # lengths in float32, not float64
        assert not torch.equal(ours, x)


def test_one_recording_serves_steps_radii_and_smaller_batches(graphs):
    model = network().eval()
    for settings, n in (({}, 12), ({'steps': 5}, 12), ({'eps': 0.02, 'step_size': 0.01}, 12), ({}, 10), ({}, 7)):
        x, y = batch(n)
        assert torch.equal(attack(**settings)(model, x, y), attack('none', **settings)(model, x, y))
    assert graphs[model].recorder.recorded == 1
    x, y = batch(6)  # half of the full batch is a size of its own
    attack()(model, x, y)
    attack(norm='l2')(model, *batch())
    assert graphs[model].recorder.recorded == 3


def test_micro_batches_of_unequal_sizes_share_a_graph(graphs):
    task = AdversarialTrainingTask(network(), attack(), verbose=False)
    x, y = batch(11)
    for start, n in ((0, 4), (4, 4), (8, 3)):
        task(x[start:start + n], y[start:start + n])['loss'].backward()
    assert graphs[task.bare_module].recorder.recorded == 1


def test_batch_statistics_are_not_those_of_padding(graphs):
    model = network().train()
    for n, recordings in ((12, 1), (7, 1), (7, 1), (7, 2), (12, 2)):  # a size that comes often has a graph of its own
        x, y = batch(n)
        assert torch.equal(attack(mode='train')(model, x, y), attack('none', mode='train')(model, x, y))
        assert graphs[model].recorder.recorded == recordings


def test_training_is_not_padded_to_the_batches_of_validation(graphs):
    model, sizes = network().eval(), []
    model[0].register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    for n in (12, 11, *[8] * 5, 3, 12, 8):  # whole and last batch, then smaller ones, one of them the last
        sizes.clear()
        attack()(model, *batch(n))
    assert set(sizes) == {8} and graphs[model].recorder.recorded == 3  # 12, 8, and 3 in a half of 6


def test_batches_of_all_sizes_need_few_graphs(graphs):
    model = network().eval()
    for n in [*range(1, 50, 3)] * 4:
        x, y = batch(n)
        assert torch.equal(attack(steps=1)(model, x, y), attack('none', steps=1)(model, x, y))
    assert len(graphs[model]._graphs) <= 33


@pytest.mark.parametrize('device', DEVICES)
def test_updated_weights_are_attacked_and_moved_ones_recorded_again(device, graphs):
    model, (x, y) = network(device), batch(device=device)

    same(attack()(model, x, y), attack('none')(model, x, y))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    nn.functional.cross_entropy(model(x), y).backward()
    before = attack()(model, x, y)
    optimizer.step()
    assert not torch.equal(attack()(model, x, y), before)
    same(attack()(model, x, y), attack('none')(model, x, y))
    if device == 'cpu':
        assert graphs[model].recorder.recorded == 1
    weights = {name: value.clone() * 2 for name, value in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    same(attack()(model, x, y), attack('none')(model, x, y))
    if device == 'cpu':
        assert graphs[model].recorder.recorded == 2
    model[4] = nn.Tanh()  # has no weights that could have moved
    same(attack()(model, x, y), attack('none')(model, x, y))
    model.double()
    x = x.double()
    same(attack()(model, x, y), attack('none')(model, x, y), rounding=1e-12)
    if device == 'cpu':
        assert graphs[model].recorder.recorded == 4


@pytest.mark.parametrize('device', DEVICES)
def test_logits_and_their_gradients_are_the_models(device, graphs):
    model, (x, _) = network(device).eval(), batch(device=device)
    recorded = graphs.setdefault(model, ModelGraphs(StandIn())) if device == 'cpu' else graphs_of(model, x)
    recorded.begin_attack(model)
    slopes = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0)).to(device)
    for n in (12, 7, 3):
        ours, plain = (x[:n].clone().requires_grad_() for _ in range(2))
        logits, expected = recorded.logits(model, ours), model(plain)
        torch.testing.assert_close(logits, expected)
        with torch.no_grad():
            torch.testing.assert_close(recorded.logits(model, x[-n:]), model(x[-n:]))
        recorded.logits(model, x[-n:].requires_grad_())  # another batch comes between forward and backward
        for slope in slopes[:, :n]:
            found, = torch.autograd.grad(logits, ours, slope, retain_graph=True)
            torch.testing.assert_close(found, torch.autograd.grad(expected, plain, slope, retain_graph=True)[0])


@pytest.mark.parametrize('amp_dtype', [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize('device', DEVICES)
def test_autoattack_is_the_same(device, amp_dtype, monkeypatch):
    model, (x, _) = network(device).eval(), batch(10, device)
    settings = {'eps': 0.06, 'version': 'custom', 'attacks': ['apgd-ce', 'fab-t'], 'batch_size': 8,
                'amp_dtype': amp_dtype}
    with monkeypatch.context() as eager:
        eager.setattr('timm_paf.attacks.autoattack_model.graphs_of', lambda model, x: None)
        expected = autoattack(model, x, model(x).argmax(1), **settings)
    made = ModelGraphs(StandIn())
    if device == 'cpu':
        monkeypatch.setattr('timm_paf.attacks.autoattack_model.graphs_of', lambda model, x: made)
    ours = autoattack(model, x, model(x).argmax(1), **settings)
    assert torch.equal(ours.robust, expected.robust) and 0 < ours.robust.sum() < 10
    torch.testing.assert_close(ours.x_adv, expected.x_adv)
    assert device != 'cpu' or made.recorder.recorded >= 2


@pytest.mark.parametrize('device', DEVICES)
def test_autocast_has_its_own_recording(device, graphs):
    model, (x, y) = network(device).eval(), batch(device=device)
    plain = attack()(model, x, y)
    for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
        with torch.autocast(device, dtype=dtype):
            eager, ours = attack('none')(model, x, y), attack()(model, x, y)
        same(ours, eager)
        assert dtype == torch.float16 or not torch.equal(ours, plain)  # float16 can have the signs of float32
    if device == 'cpu':
        assert graphs[model].recorder.recorded == 3
    with torch.no_grad():
        model[0].weight.mul_(-1)
    with torch.autocast(device, dtype=torch.bfloat16):
        same(attack()(model, x, y), attack('none')(model, x, y))


@pytest.mark.parametrize('device', DEVICES)
def test_results_are_not_overwritten_by_the_next_attack(device, graphs):
    model = network(device).eval()
    first = attack()(model, *batch(device=device))
    kept = first.clone()
    attack()(model, *batch(device=device, seed=5))
    assert torch.equal(first, kept)


def test_model_that_cannot_be_recorded_runs_step_by_step_with_one_warning(graphs):
    class Refusing:
        def record(self, function):
            raise RuntimeError('operation not permitted when stream is capturing\nlong text')

    model = network().eval()
    graphs[model] = ModelGraphs(Refusing())
    with pytest.warns(RuntimeWarning, match=r'Sequential .*not permitted') as warned:
        ours = attack()(model, *batch())
        attack(norm='l2')(model, *batch())
    assert len(warned) == 1
    assert torch.equal(ours, attack('none')(model, *batch()))


@pytest.mark.parametrize('wrong', [0, 2], ids=['logits', 'images'])
def test_wrong_graphs_are_found_and_not_used(wrong, graphs):
    class Wrong(StandIn):
        def record(self, function):
            results, _ = super().record(function)
            return tuple(1 - r if i == wrong else r for i, r in enumerate(results)), lambda: None

    model, (x, y) = network().eval(), batch()
    graphs[model] = ModelGraphs(Wrong())
    with pytest.warns(RuntimeWarning, match='Sequential .*differ') as warned:
        ours = attack()(model, x, y)
    assert len(warned) == 1 and torch.equal(ours, attack('none')(model, x, y))


def test_wrong_gradients_are_found_and_not_used():
    class Wrong(StandIn):
        def record_gradient(self, function, x):
            memory, forward, _ = super().record_gradient(function, x)
            return memory, forward, lambda: None

    model, (x, _) = network().eval(), batch()
    recorded = ModelGraphs(Wrong())
    recorded.begin_attack(model)
    with pytest.warns(RuntimeWarning, match='Sequential .*differ'):
        logits = recorded.logits(model, x.requires_grad_())
    torch.testing.assert_close(logits, model(x))


def test_errors_of_the_model_are_its_own(graphs):
    with pytest.raises(ValueError, match='logits'):
        attack()(nn.Identity(), *batch())
    model = network().eval()
    with pytest.raises(ValueError, match=r'\(\)'):
        attack(loss=lambda logits, y: logits.sum())(model, *batch())


class OnlyOnce:
    """Keeps nothing of the function that it records, as a CUDA graph does."""

    def record(self, function):
        return function(), lambda: None


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A CPU that passes for a GPU, with graphs that give the results of the first call."""
    made = functools.cache(lambda device: OnlyOnce())
    monkeypatch.setattr(capture_module, '_recorder', made)
    monkeypatch.setattr(torch.Tensor, 'is_cuda', True)
    for name in ('is_current_stream_capturing', 'current_stream', 'default_stream'):
        monkeypatch.setattr(torch.cuda, name, lambda *_: False)
    yield made
    release_graphs()


def test_graphs_go_with_the_model_and_no_copy_has_them(pretended_gpu):
    model, (x, y) = network().eval(), batch()
    attack()(model, x, y)
    assert graphs_of(model, x)._graphs and not graphs_of(copy.deepcopy(model), x)._graphs
    release_graphs(model)
    assert not graphs_of(model, x)._graphs
    attack()(model, x, y)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize('change', [
    lambda model: model[0].register_forward_pre_hook(lambda *_: None),  # a replay would not call it
    lambda model: model[0].compile(), lambda model: model.append(torch.compile(nn.Identity(), backend='eager')),
    lambda model: model.append(CompiledModel(nn.Identity())),
    lambda model: model.append(nn.DataParallel(nn.Identity())),
    lambda model: model.append(nn.Linear(5, 5, device='meta')),
], ids=['hook', 'compiled in place', 'compiled', 'CompiledModel', 'DataParallel', 'several devices'])
def test_some_models_are_not_recorded(change, pretended_gpu):
    model, (x, _) = network(), batch()
    assert graphs_of(model, x) is not None
    change(model)
    assert graphs_of(model, x) is None


def test_a_model_on_another_device_is_recorded_by_that_device(pretended_gpu, monkeypatch):
    model, (x, y) = network().eval(), batch()
    attack()(model, x, y)
    other = object()
    monkeypatch.setattr(capture_module, '_recorder', functools.cache(lambda device: other))
    assert graphs_of(model, x).recorder is other and not graphs_of(model, x)._graphs


def test_other_streams_and_recordings_are_left_alone(pretended_gpu, monkeypatch):
    model, (x, _) = network(), batch()
    for name in ('current_stream', 'is_current_stream_capturing'):
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, name, lambda *_: True)
            assert graphs_of(model, x) is None


def test_the_module_inside_distributed_data_parallel_is_attacked(graphs, tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model, (x, y) = network(), batch()
        task = AdversarialTrainingTask(model, attack(random_start=False), verbose=False)
        expected = attack('none', random_start=False)(model, x, y)
        task.prepare_distributed()
        for _ in range(2):
            result = task(x, y)
            result['loss'].backward()
            assert torch.equal(result['x_adv'], expected)
            model.load_state_dict(network().state_dict())  # running statistics as before
        assert list(graphs) == [model] and graphs[model].recorder.recorded == 1
    finally:
        torch.distributed.destroy_process_group()


def test_nothing_is_recorded_without_a_gpu_or_when_asked_not_to(monkeypatch):
    monkeypatch.setattr(capture_module, '_recorder', None)
    model, (x, y) = network().eval(), batch()
    attack()(model, x, y)
    assert graphs_of(model, x) is None
    with pytest.raises(ValueError, match='capture'):
        attack('yes')
