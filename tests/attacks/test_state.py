"""A model under attack: what it computes, and that it is as before afterwards."""
import pytest
import timm
import torch
from torch import nn

import timm_paf  # noqa: F401
from timm_paf.attacks import PGD, attack_mode


def norm_network(kind, **kwargs):
    torch.manual_seed(0)
    norm = kind(4, **kwargs)
    return nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3))


def snapshot(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [(m.training, getattr(m, 'track_running_stats', None), set(m.__dict__)) for m in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()], [b.data_ptr() for b in model.buffers()])


def assert_same(model, before):
    state, *rest = snapshot(model)
    assert rest == list(before[1:])
    assert all(torch.equal(v, before[0][k]) for k, v in state.items())


MODELS = {
    'batchnorm': lambda: norm_network(nn.BatchNorm2d),
    'no momentum': lambda: norm_network(nn.BatchNorm2d, momentum=None),
    'not tracking': lambda: norm_network(nn.BatchNorm2d, track_running_stats=False),
    'sync': lambda: nn.SyncBatchNorm.convert_sync_batchnorm(norm_network(nn.BatchNorm2d)),
    'instance': lambda: norm_network(nn.InstanceNorm2d, track_running_stats=True),
    'norm and activation': lambda: norm_network(timm.layers.BatchNormAct2d),
}


@pytest.mark.parametrize('kind, mode, found, layout', [
    *[(kind, 'train', 'train', torch.channels_last) for kind in MODELS],
    *[('sync', 'eval', found, torch.contiguous_format) for found in ('train', 'eval')]])
def test_everything_is_as_before(kind, mode, found, layout):
    model = MODELS[kind]()
    x, y = torch.rand(5, 2, 6, 6), torch.tensor([0, 1, 2, 0, 1])
    model(x)  # statistics that are not the initial ones
    model[0].weight.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    model.train(found == 'train').to(memory_format=layout)
    before, random = snapshot(model), torch.get_rng_state()
    PGD(eps=0.1, steps=2, mode=mode)(model, x.to(memory_format=layout), y)
    assert_same(model, before)
    assert torch.equal(torch.get_rng_state(), random)

    def fail(*_):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        PGD(eps=0.1, steps=2, mode=mode, loss=fail)(model, x, y)
    assert_same(model, before)


@pytest.mark.parametrize('kind', ['batchnorm', 'no momentum', 'sync', 'norm and activation'])
def test_train_mode_normalises_by_the_batch(kind):
    """And drops nothing: the logits are those of a copy in training mode whose dropout is off."""
    model, x = MODELS[kind](), torch.rand(5, 2, 6, 6)
    model(3 * x)
    model.train()
    twin = MODELS[kind]()
    twin.load_state_dict(model.state_dict())
    twin.train()[3].eval()
    with attack_mode(model, 'train'):
        logits = model(x)
    assert torch.equal(logits, twin(x))
    twin.load_state_dict(model.state_dict())
    with attack_mode(model, 'eval'):
        assert torch.equal(model(x), twin.eval()(x))


@pytest.mark.parametrize('network_trains', [True, False])
def test_a_layer_frozen_inside_a_training_network_stays_frozen(network_trains):
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    model.train(network_trains)
    model[0].eval()
    with attack_mode(model, 'train'):
        assert [m.training for m in model[:2]] == [not network_trains, True]
    assert [m.training for m in model] == [False, network_trains]
