"""Feature extraction, tracing, scripting, compilation and half precision of every network.

alpha and beta are far from their initial values, so that a missing activation is detected.
"""
import copy
import gc

import pytest
import timm
import torch
from timm.layers import set_scriptable
from torch.testing import assert_close
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from tests.models.conftest import SMALL


def create(name, **kwargs):
    torch.manual_seed(0)
    if name.endswith('_pssilu'):
        kwargs['act_kwargs'] = dict(alpha=2., beta=0.2)
    return timm.create_model(name, **kwargs)


def images(size=8, batch=2):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def free_memory():
    """Compiled graphs and scripted modules keep networks alive."""
    yield
    torch._dynamo.reset()
    gc.collect()


def gradients(model, x):
    model.zero_grad()
    model(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_any_resolution(arch):
    model = create(f'{arch}_pssilu', in_chans=1, num_classes=5).eval()
    for size in (8, 17, 28, 64):
        with torch.no_grad():
            final, maps = model.forward_intermediates(torch.rand(1, 1, size, size))
            logits = model.forward_head(final)
        assert logits.shape == (1, 5) and logits.isfinite().all()
        assert [m.shape[-1] for m in maps] == [max(-(-size // info['reduction']), 1) for info in model.feature_info]


def test_forward_is_features_and_head(arch):
    model = create(f'{arch}_pssilu').eval()
    x = images()
    with torch.no_grad():
        features = model.forward_features(x)
        assert torch.equal(model(x), model.forward_head(features))
        assert_close(model.forward_head(features), model.fc(features.mean((2, 3))))
        final, maps = model.forward_intermediates(x)
        assert torch.equal(final, features)
        assert torch.equal(model.forward_intermediates(x, 1, norm=True, intermediates_only=True)[0], features)
        chosen = model.forward_intermediates(x, [2, 1], stop_early=True, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(chosen, maps[1:3], strict=True))


@pytest.mark.parametrize('extractor', ['list', 'dict', 'getter', 'hook', 'fx'])
def test_extractors_agree_with_forward_intermediates(small, extractor):
    features = create(f'{small}_pssilu', features_only=True, feature_cls=extractor).eval()
    model = create(f'{small}_pssilu').eval()
    x = images(16)
    with torch.no_grad():
        found, expected = features(x), model.forward_intermediates(x, intermediates_only=True)
    found = list(found.values()) if isinstance(found, dict) else found
    assert len(found) == len(expected) == len(model.feature_info)
    for a, b, channels in zip(found, expected, features.feature_info.channels(), strict=True):
        assert_close(a, b)
        assert a.shape[1] == channels and a.std() > 0


def test_pruned_network_gives_the_same_levels(small):
    whole, x = create(f'{small}_pssilu').eval(), images(16)
    for indices in ([-1], [1, 2], [0]):
        model = copy.deepcopy(whole)
        model.prune_intermediate_layers(indices)
        with torch.no_grad():
            found = model.forward_intermediates(
                x, [i % len(whole.feature_info) for i in indices], intermediates_only=True)
            expected = whole.forward_intermediates(x, indices, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def traced(model):
    train_nodes, eval_nodes = get_graph_node_names(model)
    return create_feature_extractor(
        copy.deepcopy(model), train_return_nodes={train_nodes[-1]: 'y'}, eval_return_nodes={eval_nodes[-1]: 'y'})


def test_traced_network_computes_the_same(small, act):
    model = create(f'{small}_{act}')
    x = images()
    graph = traced(model)
    graph(x)['y'].square().mean().backward()
    found, expected = {name: p.grad for name, p in graph.named_parameters()}, gradients(model, x)
    assert len(found) == len(expected)
    for name, gradient in found.items():
        assert_close(gradient, expected[name])
    with torch.no_grad():
        assert_close(graph.eval()(x)['y'], model.eval()(x))


@pytest.mark.usefixtures('reference')
def test_scripted_network_computes_the_same(small, act):
    with set_scriptable(True):
        model = create(f'{small}_{act}').double().eval()  # BatchNorm over two pixels magnifies what float32 rounds
    x = images().double()
    scripted = torch.jit.script(model)
    with torch.no_grad():
        assert_close(scripted(x), model(x))
    found, expected = gradients(scripted.train(), x), gradients(copy.deepcopy(model).train(), x)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert_close(gradient, expected[name])


@pytest.mark.usefixtures('reference')
@pytest.mark.parametrize('name, mode', [
    pytest.param(name, mode, marks=[] if name in ('wrn10_2_pssilu', 'vgg11_bn_relu') else pytest.mark.slow)
    for name in [f'{arch}_{act}' for arch in SMALL for act in ('relu', 'pssilu')] for mode in ('eval', 'train')])
def test_compiles_as_one_graph(name, mode):
    model = create(name).train(mode == 'train')
    x = images()
    expected = gradients(copy.deepcopy(model), x)
    compiled = torch.compile(model, fullgraph=True, backend='eager')  # what the graph is turned into is not ours
    compiled(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name])


def test_checkpointing_changes_no_gradient_and_keeps_less(small, act):
    model = create(f'{small}_{act}').eval()
    x = images(16)
    kept = []

    def pack(tensor):
        kept[-1] += 1
        return tensor

    results = []
    for enable in (False, True):
        kept.append(0)
        model.set_grad_checkpointing(enable)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            results.append((gradients(model, x), model.forward_intermediates(x, intermediates_only=True)))
    assert kept[1] < kept[0] / 2
    (plain, maps), (recomputed, maps_again) = results
    assert all(torch.equal(a, b) for a, b in zip(maps, maps_again, strict=True))
    for name, gradient in recomputed.items():
        assert_close(gradient, plain[name])


def test_bfloat16(small):
    model, half = create(f'{small}_pssilu').eval(), create(f'{small}_pssilu', dtype=torch.bfloat16).eval()
    half.load_state_dict(model.state_dict())
    x = images()
    with torch.no_grad():
        expected = model(x)
        with torch.autocast('cpu', torch.bfloat16):
            assert (model(x).float() - expected).norm() < 0.05 * expected.norm()
        final, maps = half.forward_intermediates(x.bfloat16())
        logits = half.forward_head(final)
    assert {m.dtype for m in [logits, *maps]} == {torch.bfloat16}
    assert (logits.float() - expected).norm() < 0.05 * expected.norm()
