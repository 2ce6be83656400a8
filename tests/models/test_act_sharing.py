"""How many activations a model has: one, one a stage, one a place, one value a channel."""
import pytest
import timm
import torch
from torch.testing import assert_close

from timm_paf import paf_parameters
from timm_paf.models import load_weights, save_for_hf

# places, and channels at them, counted by hand from the architectures
COUNTS = {
    'wrn10_2': dict(stage=4, layer=7, channel=16 + 32 + 32 + 64 + 64 + 128 + 128),
    'resnet18': dict(stage=5, layer=17, channel=64 + 4 * (64 + 128 + 256 + 512)),
    'vgg11': dict(stage=5, layer=8, channel=64 + 128 + 2 * (256 + 512 + 512)),
    'resnet18_224': dict(stage=5, layer=17, channel=64 + 4 * (64 + 128 + 256 + 512)),
}


def create(name, sharing, **kwargs):
    torch.manual_seed(0)
    sharing = {} if sharing is None else dict(act_sharing=sharing)
    return timm.create_model(f'{name}_pssilu', num_classes=10, **sharing, **kwargs).eval()


@pytest.mark.parametrize('sharing', [None, 'network', 'stage', 'layer', 'channel'])
@pytest.mark.parametrize('name', ['wrn10_2', 'resnet18', 'vgg11', 'resnet18_224'])
def test_number_of_values(name, sharing):
    model = create(name, sharing)
    parameters = paf_parameters(model)
    expected = COUNTS[name].get(sharing, 1)
    assert sum(p.numel() for p in parameters.values()) == 2 * expected
    if sharing != 'channel':
        assert len(parameters) == 2 * expected
    total = sum(p.numel() for p in model.parameters())
    plain = sum(p.numel() for p in timm.create_model(f'{name}_relu', num_classes=10).parameters())
    assert total - plain == 2 * expected


@pytest.mark.parametrize('sharing', ['stage', 'layer', 'channel'])
def test_at_first_it_is_the_same_function_and_then_each_learns_its_own(sharing):
    model, shared = (create('wrn10_2', s, act_kwargs=dict(alpha=2., beta=0.1)) for s in (sharing, None))
    x = torch.rand(2, 3, 16, 16)
    assert_close(model(x), shared(x))
    model(x).square().sum().backward()
    shared(x).square().sum().backward()
    gradients = [p.grad for name, p in paf_parameters(model).items() if name.endswith('alpha')]
    assert_close(torch.cat(gradients).sum(), shared.layer1[0].act1.alpha.grad[0], rtol=1e-4, atol=1e-5)


def test_keys_of_the_state_dict():
    def keys(sharing):
        return [key for key in create('wrn10_2', sharing).state_dict() if key.endswith('alpha')]

    places = [f'layer{stage}.0.act{i}.alpha' for stage in (1, 2, 3) for i in (1, 2)] + ['act.alpha']
    assert keys('network') == ['layer1.0.act1.alpha']
    assert keys('stage') == [places[0], places[2], places[4], places[6]]
    assert keys('layer') == keys('channel') == places


@pytest.mark.parametrize('sharing', ['stage', 'layer', 'channel'])
@pytest.mark.parametrize('way', ['overlay', 'load_weights', 'hub'])
def test_weights_round_trip(sharing, way, tmp_path):
    model = create('wrn10_2', sharing)
    with torch.no_grad():
        for p in paf_parameters(model).values():
            p.uniform_(0.1, 0.4)
    if way == 'hub':
        save_for_hf(model, tmp_path / 'hub', training_data='none', model_args=dict(act_sharing=sharing))
        again = timm.create_model(f'local-dir:{tmp_path / "hub"}', pretrained=True).eval()
    else:
        torch.save(model.state_dict(), tmp_path / 'w.pth')
        if way == 'overlay':
            overlay = dict(file=str(tmp_path / 'w.pth'), num_classes=10)
            again = create('wrn10_2', sharing, pretrained=True, pretrained_cfg_overlay=overlay)
        else:
            again = create('wrn10_2', sharing)
            load_weights(again, tmp_path / 'w.pth')
    x = torch.rand(2, 3, 16, 16)
    assert_close(again(x), model(x), rtol=0, atol=0)


def test_device_dtype_and_settings_reach_every_activation():
    model = timm.create_model(
        'resnet18_pssilu', act_sharing='channel', in_chans=1, dtype=torch.float64,
        act_kwargs=dict(alpha=3., learnable={'beta': False}))
    assert model.act1.alpha.dtype == torch.float64 and (model.act1.alpha == 3).all()
    assert all(name.endswith('alpha') for name in paf_parameters(model))


@pytest.mark.parametrize('name, settings, message', [
    ('wrn10_2_pssilu', dict(act_sharing='block'), "act_sharing = 'block': expected one of network, stage"),
    ('wrn10_2_relu', dict(act_sharing='layer'), 'is for the parametric activation in the name'),
    ('wrn10_2_pssilu', dict(act_sharing='layer', act_layer='psilu'), 'without another act_layer'),
], ids=['unknown', 'relu', 'two activations'])
def test_errors(name, settings, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **settings)


def test_relu_twins_take_the_default():
    assert not paf_parameters(timm.create_model('wrn10_2_relu', act_sharing='network'))
