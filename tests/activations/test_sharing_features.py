"""Feature maps of a network with one activation at all its places: their values, or a refusal."""
import pytest
import timm
import torch
from timm.models import FeatureHookNet, FeatureHooks
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from timm_paf import convert_activations, shared
from timm_paf.activations import PSSiLU

EXTRACTORS = ['list', 'dict', 'getter', 'hook', 'fx']


def build(name, **kwargs):
    torch.manual_seed(0)
    act_layer = shared('pssilu', alpha=2., beta=0.2)  # far from the initial values, so that a missed place shows
    return timm.create_model(name, **{'act_layer': act_layer, **kwargs}).eval()


def maps(extractor, x):
    with torch.no_grad():
        found = extractor(x)
    return list(found.values()) if isinstance(found, dict) else found


@pytest.mark.parametrize('name, extractor, settings', [
    *((name, extractor, {}) for extractor in EXTRACTORS
      for name in ('resnet18', 'test_efficientnet', 'test_convnext')),
    *(('resnet18', extractor, dict(act_layer='pssilu')) for extractor in ('hook', 'fx'))], ids=str)
def test_extractors_give_the_values_of_forward_intermediates(name, extractor, settings):
    x = torch.rand(1, 3, 32, 32)
    stem_map = name == 'resnet18' and extractor == 'hook' and not settings  # would be read at the shared activation
    chosen = dict(out_indices=(1, 2, 3, 4)) if stem_map else {}
    if name == 'test_efficientnet' and extractor in ('list', 'dict'):  # nor can timm's own activations be read so
        with pytest.raises(AssertionError, match='not present in model'):
            timm.create_model(name, features_only=True, feature_cls=extractor)
        return
    features = build(name, features_only=True, feature_cls=extractor, **chosen, **settings)
    indices = list(features.feature_info.out_indices)
    with torch.no_grad():
        expected = build(name, **settings).forward_intermediates(x, indices=indices, intermediates_only=True)
    found = maps(features, x)
    assert len(found) == len(expected) >= 4
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('hook_type', ['forward', 'forward_pre'])
def test_hook_on_a_shared_activation_is_refused(hook_type):
    model = build('resnet18')
    with pytest.raises(ValueError, match='one activation at 17 places'):
        FeatureHooks([dict(module='act1', hook_type=hook_type)], model.named_modules())


def test_hooks_of_others_see_every_place():
    model, seen = build('resnet18'), []
    handle = model.act1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    model(torch.rand(1, 3, 32, 32))
    assert len(seen) == 17 and (seen[0], seen[-1]) == (64, 512)
    handle.remove()


def test_fx_names_a_shared_activation_by_where_it_is_called():
    model = build('resnet18')
    x = torch.rand(1, 3, 32, 32)
    found = create_feature_extractor(model, {'act1': 'stem', 'layer2': 'second', 'layer4.1': 'last'})(x)
    expected = model.forward_intermediates(x, intermediates_only=True)
    for key, index in (('stem', 0), ('second', 2), ('last', 4)):
        torch.testing.assert_close(found[key], expected[index])
    names, _ = get_graph_node_names(model)
    assert sum(name.startswith('act1.') for name in names) == 1 + 2  # one call, and the two parameters that it reads


def test_fx_refuses_a_place_that_it_cannot_tell_from_another():
    """Both activations of a block are one module: the tracer does not know which one was called."""
    with pytest.raises(ValueError, match=r'layer1\.0\.act1.* is not present in model'):
        create_feature_extractor(build('resnet18'), ['layer1.0.act1'])


def test_converted_network_is_read_in_the_same_way():
    torch.manual_seed(0)
    model = timm.create_model('resnet18').eval()
    convert_activations(model, 'pssilu', alpha=2., beta=0.2)
    x = torch.rand(1, 3, 32, 32)
    expected = model.forward_intermediates(x, intermediates_only=True)
    found = create_feature_extractor(model, {'act1': '0', 'layer1': '1', 'layer4': '4'})(x)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[int(key)])
    with pytest.raises(ValueError, match='one activation at 17 places'):
        FeatureHookNet(model)


def test_plain_symbolic_trace_computes_the_same():
    act_layer = shared('pssilu', alpha=2., beta=0.2)
    model = nn.Sequential(nn.Linear(3, 4), act_layer(), nn.Linear(4, 2), act_layer())
    traced, x = torch.fx.symbolic_trace(model), torch.randn(5, 3)
    torch.testing.assert_close(traced(x), model(x))
    assert {id(p) for p in traced.parameters()} == {id(p) for p in model.parameters()}


def test_places_are_counted_for_each_model():
    act_layer = shared('pssilu')
    counts = [timm.create_model(name, act_layer=act_layer).act1.places for name in ('resnet18', 'resnet50', 'resnet18')]
    assert counts == [17, 49, 17]
    assert PSSiLU().places == 1
