"""One module at many places: nothing that timm or torch does to a model may copy it or count it twice."""
import copy
import io
import pickle

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn

from timm_paf import paf_parameters, shared
from timm_paf.activations import ParametricActivation, PSSiLU, shared_activations

NAMES = ['resnet18_pssilu', 'wrn10_2_pssilu']


def small(name='resnet18_pssilu', **kwargs):
    return timm.create_model(name, in_chans=1, **kwargs)


def copies(model):
    """Keys of the shared parameters in a state dict of the published form."""
    return [
        f'{prefix}.{name}' for prefix, module in places(model)
        if isinstance(module, ParametricActivation) for name, _ in module.named_parameters()]


def places(module, prefix=''):
    """Every place of every module, duplicates included."""
    for name, child in module._modules.items():
        if child is not None:
            yield prefix + name, child
            yield from places(child, f'{prefix}{name}.')


def with_copies(model):
    state = model.state_dict()
    values = {key.rsplit('.', 1)[-1]: value for key, value in paf_parameters(model).items()}
    return {**state, **{key: values[key.rsplit('.', 1)[-1]].detach().clone() for key in copies(model)}}


def set_shape(model, alpha, beta):
    with torch.no_grad():
        for parameter, value in zip(paf_parameters(model).values(), (alpha, beta), strict=True):
            parameter.fill_(value)
    return model


def is_shared(model):
    return len({id(m) for m in model.modules() if isinstance(m, ParametricActivation)}) == 1 and len(copies(model)) > 2


def test_factory_gives_each_model_its_own_module():
    act_layer = shared('pssilu', alpha=2.)
    first = timm.create_model('resnet18_relu', act_layer=act_layer)
    second = timm.create_model('resnet18_relu', act_layer=act_layer)
    assert is_shared(first) and is_shared(second)
    assert first.act1 is not second.act1
    assert first.act1.alpha.item() == 2.


def test_factory_outside_of_a_model_keeps_one_module():
    act_layer = shared('psilu')
    model = nn.Sequential(nn.Linear(2, 2), act_layer(inplace=True), nn.Linear(2, 2), act_layer())
    assert model[1] is model[3]


@pytest.mark.parametrize('name', NAMES)
def test_state_dict_holds_each_parameter_once(name):
    model = small(name)

    def learned(state):
        return [key for key in state if key.endswith(('alpha', 'beta'))]

    keys = list(paf_parameters(model))
    assert len(keys) == 2
    for _ in range(2):
        assert learned(model.state_dict()) == learned(model.state_dict(destination={})) == keys
    assert learned(model.state_dict(prefix='module.')) == [f'module.{key}' for key in keys]
    assert len(learned(model.layer3.state_dict())) == 2  # a part has them too


@pytest.mark.parametrize('assign', [False, True])
@pytest.mark.parametrize('form', [lambda m: m.state_dict(), with_copies], ids=['once', 'a copy per place'])
@pytest.mark.parametrize('name', NAMES)
def test_both_forms_load_strictly(name, form, assign):
    source, target = set_shape(small(name), 2.5, 0.2), small(name)
    target.load_state_dict(form(source), strict=True, assign=assign)
    assert [p.item() for p in paf_parameters(target).values()] == pytest.approx([2.5, 0.2])
    assert is_shared(target)
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(target.eval()(x), source.eval()(x))


def test_missing_parameter_is_reported():
    model = small()
    state = model.state_dict()
    del state['act1.beta']
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "act1.beta"'):
        model.load_state_dict(state)
    assert model.load_state_dict(state, strict=False).missing_keys == ['act1.beta']


@pytest.mark.parametrize('position', [1, 6, -1])
def test_a_missing_or_contradictory_copy_is_reported(position):
    model = small()
    key, state = copies(model)[position], with_copies(model)
    with pytest.raises(RuntimeError, match=f'{key} = .* contradicts act1'):
        model.load_state_dict({**state, key: state[key] + 0.1})
    del state[key]
    with pytest.raises(RuntimeError, match=key.replace('.', r'\.')):
        model.load_state_dict(state)


def test_loading_again_starts_afresh():
    model = small()
    with pytest.raises(RuntimeError):
        model.load_state_dict({})
    model.load_state_dict(with_copies(set_shape(small(), 3., 0.1)))
    model.load_state_dict(set_shape(small(), 4., 0.2).state_dict())
    assert [p.item() for p in paf_parameters(model).values()] == pytest.approx([4., 0.2])


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


@pytest.mark.parametrize('copied', [copy.deepcopy, through_pickle, through_torch_save], ids=lambda f: f.__name__)
def test_copies_of_a_model_share_as_it_does(copied):
    model = set_shape(small(), 1.5, 0.1)
    twin = copied(model)
    assert is_shared(twin) and twin.act1 is not model.act1
    assert list(twin.state_dict()) == list(model.state_dict())
    set_shape(model, 9., 0.3)
    assert twin.layer4[1].act2.alpha.item() == 1.5


@pytest.mark.parametrize('copied', [copy.deepcopy, through_pickle], ids=lambda f: f.__name__)
def test_factories_with_settings_can_be_copied(copied):
    act_layer = shared('pssilu', learnable={'beta': False}, alpha=2.)
    first, second = (timm.create_model('test_resnet', act_layer=layer) for layer in (act_layer, copied(act_layer)))
    assert is_shared(second) and first.act1 is not second.act1 and second.act1.alpha.item() == 2.
    assert list(paf_parameters(second)) == ['conv1.2.alpha']


@pytest.mark.parametrize('average', [ModelEmaV2, ModelEmaV3], ids=lambda c: c.__name__)
def test_average_moves_once_a_step(average):
    model = set_shape(small(), 1., 0.5)
    ema = average(set_shape(small(), 0., 0.), decay=0.9)
    ema.update(model)
    assert [p.item() for p in paf_parameters(ema.module).values()] == pytest.approx([0.1, 0.05])
    assert is_shared(ema.module)


def test_optimizer_sees_it_once():
    model = small()
    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.1, weight_decay=0.1)
    parameters = [id(p) for group in optimizer.param_groups for p in group['params']]
    assert len(parameters) == len(set(parameters)) == len(list(model.parameters()))
    decayed = {id(p) for group in optimizer.param_groups if group['weight_decay'] for p in group['params']}
    assert not decayed & {id(p) for p in paf_parameters(model).values()}


def test_names_list_every_parameter_once():
    model = nn.ModuleDict({'a': small(), 'b': timm.create_model('test_resnet', act_layer='psilu')})
    names = paf_parameters(model)
    assert list(names)[:2] == ['a.act1.alpha', 'a.act1.beta']
    assert len({id(p) for p in names.values()}) == len(names)
    assert all(model.get_parameter(name) is parameter for name, parameter in names.items())
    assert paf_parameters(nn.ReLU()) == {}


def test_gradient_is_the_sum_over_places():
    model = set_shape(small().double(), 1.3, 0.2).eval()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    model(x).sum().backward()
    h = 1e-6
    with torch.no_grad():
        up, down = (set_shape(model, 1.3 + d, 0.2)(x).sum() for d in (h, -h))
    assert model.act1.alpha.grad.item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-5)


def test_shared_activations_are_found_however_they_came_there():
    by_hand = PSSiLU()
    model = nn.ModuleDict({
        'a': small(), 'b': nn.Sequential(nn.Linear(2, 2), by_hand, nn.Sequential(by_hand)),
        'c': timm.create_model('test_resnet', act_layer='pssilu')})
    assert list(shared_activations(model)) == ['a.act1', 'b.1']
    assert shared_activations(model)['b.1'] is by_hand
