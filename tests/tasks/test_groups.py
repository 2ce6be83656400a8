"""Weight decay and learning rate of alpha and beta, measured by one step of an optimizer."""
from functools import partial

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.testing import assert_close

from timm_paf import fix_parameters, paf_parameters
from timm_paf.tasks import paf_parameter_groups


def model(name='wrn10_2_pssilu'):
    settings = dict(act_kwargs=dict(alpha=2., beta=0.25)) if 'pssilu' in name else {}
    return timm.create_model(name, in_chans=1, **settings)


@pytest.mark.parametrize('settings, paf, norm, conv', [
    (dict(), 0., 0., 0.),
    (dict(weight_decay=0.1), 0., 0., 0.1),
    (dict(weight_decay=0.1, filter_bias_and_bn=False), 0.1, 0.1, 0.1),
    (dict(weight_decay=0.1, filter_bias_and_bn=False, paf_weight_decay=0.), 0., 0.1, 0.1),
    (dict(weight_decay=0.1, paf_weight_decay=0.2), 0.2, 0., 0.1),
    (dict(weight_decay=0., paf_weight_decay=0.2), 0.2, 0., 0.),
    (dict(weight_decay=0.1, paf_weight_decay=0.2, paf_lr=0.5), 0.2, 0., 0.1),
    (dict(weight_decay=0.1, norm_weight_decay=0.), 0., 0., 0.1),
    (dict(weight_decay=0.1, norm_weight_decay=0.3), 0., 0.3, 0.1),
    (dict(weight_decay=0.1, norm_weight_decay=0.3, filter_bias_and_bn=False), 0.1, 0.3, 0.1),
    (dict(weight_decay=0.1, norm_weight_decay=0., filter_bias_and_bn=False), 0.1, 0., 0.1),
    (dict(weight_decay=0.1, norm_weight_decay=0.3, paf_weight_decay=0.2), 0.2, 0.3, 0.1),
    (dict(norm_weight_decay=0.3), 0., 0.3, 0.),
], ids=str)
def test_decay(settings, paf, norm, conv):
    """With gradients of 0, a step of SGD only decays."""
    net = model()
    optimizer = torch.optim.SGD(paf_parameter_groups(net, **settings), lr=0.1)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    parameters = dict(net.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer.step()
    lr = settings.get('paf_lr', 0.1)
    for name, p in parameters.items():
        # the bias of the classifier is no normalisation, and decays with the weights unless it is filtered
        plain = conv if p.dim() > 1 or not settings.get('filter_bias_and_bn', True) else 0.
        decay = norm if 'norm' in name else plain
        factor = 1 - lr * paf if name in paf_parameters(net) else 1 - 0.1 * decay
        assert_close(p.detach(), factor * before[name], msg=name)


def test_with_timms_factory():
    net = model()
    function = partial(paf_parameter_groups, weight_decay=0.1, paf_weight_decay=0.2, paf_lr=0.03)
    optimizer = create_optimizer_v2(net, opt='sgd', lr=0.5, momentum=0.9, param_group_fn=function)
    *others, last = optimizer.param_groups
    assert {id(p) for p in last['params']} == {id(p) for p in paf_parameters(net).values()}
    assert (last['lr'], last['weight_decay']) == (0.03, 0.2)
    assert {group['lr'] for group in others} == {0.5}
    listed = [id(p) for group in optimizer.param_groups for p in group['params']]
    assert sorted(listed) == sorted(id(p) for p in net.parameters())


def test_without_learnable_alpha_and_beta_the_groups_are_timms():
    fixed = model()
    fix_parameters(fixed, {'alpha': 2., 'beta': 0.1})
    for net in (fixed, model('wrn10_2_relu')):
        groups = paf_parameter_groups(net, weight_decay=0.1, paf_weight_decay=0.2, paf_lr=1.)
        assert [(group['weight_decay'], 'lr' in group) for group in groups] == [(0., False), (0.1, False)]


@pytest.mark.parametrize('name, kinds', [
    ('resnet18', nn.BatchNorm2d), ('efficientnet_b0', nn.BatchNorm2d), ('vit_tiny_patch16_224', nn.LayerNorm)])
def test_normalisation_of_timms_networks(name, kinds):
    """All of their tensors, once, and no others; efficientnet has timm's BatchNormAct2d."""
    net = timm.create_model(name)
    groups = paf_parameter_groups(net, weight_decay=0.1, norm_weight_decay=0.3)
    expected = {id(p) for module in net.modules() if isinstance(module, kinds) for p in module.parameters()}
    assert [sorted(map(id, g['params'])) for g in groups if g['weight_decay'] == 0.3] == [sorted(expected)]
    listed = [id(p) for group in groups for p in group['params']]
    assert sorted(listed) == sorted(id(p) for p in net.parameters())


@pytest.mark.parametrize('settings, message', [
    (dict(weight_decay=-1.), 'weight_decay = -1.0'), (dict(paf_weight_decay=float('nan')), 'paf_weight_decay = nan'),
    (dict(norm_weight_decay=-0.1), 'norm_weight_decay = -0.1'), (dict(paf_lr=0.), 'paf_lr = 0.0')], ids=str)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        paf_parameter_groups(model(), **settings)
