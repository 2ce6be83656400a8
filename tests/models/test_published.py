import logging
import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tests.models.conftest import CIFAR10, assert_same_logits, randomised
from timm_paf.models import load_weights
from timm_paf.models.options import has_same_padding
from timm_paf.models.state_dict import fit_state_dict

ARCHITECTURES = 'model_zoo/architectures'


def replace_relu(model, activation):
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            model.set_submodule(name, activation)
    return model


def pretrained(name, path, *, overlay=None, **kwargs):
    return timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path), **(overlay or {})), **kwargs).eval()


def fitted(name, weights, **kwargs):
    """A model with weights through `fit_state_dict`."""
    model = timm.create_model(name, **kwargs).eval()
    model.load_state_dict(fit_state_dict(weights, model))
    return model


def paf_wrn(robustbench, depth=10, widen_factor=2, **kwargs):
    file = robustbench(f'{ARCHITECTURES}/paf_wide_resnet.py')
    return file.PAF_WideResNet(file.PSSiLU(), depth=depth, widen_factor=widen_factor, **kwargs)


def wrn(robustbench, **kwargs):
    return robustbench(f'{ARCHITECTURES}/wide_resnet.py').WideResNet(depth=10, widen_factor=2, **kwargs)


def deepmind(robustbench, activation=nn.ReLU, **kwargs):
    return robustbench(f'{ARCHITECTURES}/dm_wide_resnet.py').DMWideResNet(
        depth=10, width=2, activation_fn=activation, **kwargs)


def resnet(robustbench, cls='ResNet', block='BasicBlock', layers=(2, 2, 2, 2), **kwargs):
    file = robustbench(f'{ARCHITECTURES}/resnet.py')
    return getattr(file, cls)(getattr(file, block), list(layers), **kwargs)


PREACT = dict(cls='PreActResNet', block='PreActBlockV2', bn_before_fc=True, out_shortcut=True)
ORIGINALS = {
    'Dai2021': ('wrn10_2_pssilu', paf_wrn),
    'WideResNet, ReLU': ('wrn10_2_relu', wrn),
    'WideResNet, SiLU': ('wrn10_2_silu', lambda rb: replace_relu(wrn(rb), nn.SiLU())),
    'WideResNet, unused sub_block1': ('wrn10_2_relu', lambda rb: wrn(rb, sub_block1=True)),
    'WideResNet, no bias': ('wrn10_2_relu', lambda rb: wrn(rb, bias_last=False)),
    'DMWideResNet, ReLU': ('wrn10_2_relu', deepmind),
    'DMWideResNet, Swish': (
        'wrn10_2_silu', lambda rb: deepmind(rb, rb(f'{ARCHITECTURES}/dm_wide_resnet.py').Swish)),
    'ResNet-18': ('resnet18_relu', resnet),
    'ResNet-50': ('resnet50_relu', lambda rb: resnet(rb, block='Bottleneck', layers=(3, 4, 6, 3))),
    'PreActResNet-18': ('preact_resnet18_relu', lambda rb: resnet(rb, **PREACT)),
}


@pytest.mark.filterwarnings('ignore:.*sigmoid is deprecated')
@pytest.mark.parametrize('original', ORIGINALS)
def test_logits_are_those_of_the_original(robustbench, tmp_path, original):
    name, build = ORIGINALS[original]
    theirs = randomised(build(robustbench))
    torch.save(theirs.state_dict(), tmp_path / 'published.pt')
    model = pretrained(name, tmp_path / 'published.pt')
    assert_same_logits(model, theirs)
    other = timm.create_model(name).eval()  # the same through load_weights
    assert load_weights(other, tmp_path / 'published.pt') == 'weights'
    assert_same_logits(other, theirs)


def test_the_published_size(robustbench, tmp_path):
    theirs = randomised(robustbench(f'{ARCHITECTURES}/paf_wide_resnet.py').pssilu_wrn_28_10())
    state_dict = theirs.state_dict()
    assert len(state_dict) == 181  # as the published file
    torch.save(state_dict, tmp_path / 'published.pt')
    assert_same_logits(pretrained('wrn28_10_pssilu', tmp_path / 'published.pt'), theirs)


def as_training_checkpoint(state_dict):
    return {
        'epoch': 200, 'arch': 'wrn_28_10', 'state_dict': {f'module.{key}': value for key, value in state_dict.items()},
        'best_prec1': torch.tensor(60.), 'optimizer': {'state': {}, 'param_groups': [{'lr': 0.1, 'params': [0]}]},
        'swadict': {}}


@pytest.mark.parametrize('file, write', [
    ('c.pth.tar', lambda s, p: torch.save(as_training_checkpoint(s), p)),
    ('c.pt', lambda s, p: torch.save({k: v for k, v in s.items() if not k.endswith('num_batches_tracked')}, p)),
    ('c.safetensors', lambda s, p: save_file({key: value.clone() for key, value in s.items()}, p)),
], ids=['training checkpoint', 'old BatchNorm', 'safetensors'])
def test_containers(robustbench, tmp_path, file, write):
    theirs = randomised(paf_wrn(robustbench))
    write(theirs.state_dict(), tmp_path / file)
    assert_same_logits(pretrained('wrn10_2_pssilu', tmp_path / file), theirs)
    other = timm.create_model('wrn10_2_pssilu').eval()
    load_weights(other, tmp_path / file)
    assert_same_logits(other, theirs)


def authors(name='wrn10_2_pssilu', **kwargs):
    """A network of this package, and its weights under the authors' names with their copies of the activation."""
    model = randomised(timm.create_model(name, **kwargs))
    weights, activation = {}, {}
    for key, value in model.state_dict().items():
        if key.endswith(('alpha', 'beta')):
            activation[key.rsplit('.', 1)[-1]] = value
            continue
        if name.startswith('wrn'):
            key = re.sub(r'^norm\.', 'bn1.', key)
            key = re.sub(r'^layer(\d)\.(\d+)\.norm', r'block\1.layer.\2.bn', key)
            key = re.sub(r'^layer(\d)\.(\d+)\.shortcut', r'block\1.layer.\2.convShortcut', key)
            key = re.sub(r'^layer(\d)\.(\d+)\.', r'block\1.layer.\2.', key)
        weights[key] = value
    blocks = {m[1] for k in weights if (m := re.match(r'(block\d\.layer\.\d+|layer\d\.\d+)\.', k))}
    for place in ['activation', *(f'{block}.activation' for block in blocks)]:
        weights.update({f'{place}.{parameter}': value.clone() for parameter, value in activation.items()})
    return model, weights


def test_authors_resnet():
    model, weights = authors('resnet18_pssilu')
    assert_same_logits(fitted('resnet18_pssilu', weights), model)


def test_authors_fixed_shift():
    _, weights = authors('wrn10_2_psilu')
    model = fitted('wrn10_2_pssilu_fixed', weights)
    alpha = weights['activation.alpha']
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(model.act(x), x * ((alpha.abs() * x).sigmoid() - 0.3) / 0.7)


def changed(weights, key, value):
    return {**weights, key: value}


def without(weights, pattern):
    return {key: value for key, value in weights.items() if not re.search(pattern, key)}


@pytest.mark.parametrize('name, change, message', [
    ('wrn10_2_pssilu', lambda w: changed(w, 'block2.layer.0.activation.beta', torch.tensor([0.3])),
     r'layer2\.0\.activation\.beta = .* differs from activation\.beta'),
    ('wrn10_2_pssilu', lambda w: without(w, r'block3.*alpha'),
     r'1 of 4 copies of alpha are missing, such as layer3\.0'),
    ('wrn10_2_pssilu', lambda w: without(w, 'beta'),
     'the file has an activation with alpha, .* PSSiLU'),
    ('wrn10_2_psilu', lambda w: w, 'the file has an activation with alpha and beta, .* PSiLU'),
    ('wrn10_2_relu', lambda w: w, 'the file has an activation with alpha and beta, the model has none'),
    ('wrn28_10_pssilu', lambda w: w, r'has 1\+1\+1 blocks of 32/64/128 channels, .*4\+4\+4 blocks of 160/320/640'),
    ('resnet18_pssilu', lambda w: w, "read as RobustBench's WideResNet"),
    ('wrn10_2_pssilu', lambda w: without(w, 'block1.layer.0.conv2'), r'layer1\.0\.conv2\.weight is missing'),
    ('wrn10_2_pssilu', lambda w: changed(w, 'extra', torch.ones(1)), 'extra is unknown'),
    ('wrn10_2_pssilu', lambda w: changed(w, 'bn1.bias', torch.ones(1)),
     r'norm\.bias has shape \(1,\), expected \(128,'),
    ('wrn10_2_pssilu', lambda w: changed(w, 'mu', torch.ones(1, 3, 1, 1)), 'only one of mu and sigma'),
    ('wrn10_2_pssilu', lambda w: changed(w, 'bn1.bias', 'text'), 'norm.bias is of type str'),
    ('wrn10_2_psoftplus', lambda w: {k: -v if 'alpha' in k else v for k, v in without(w, 'beta').items()},
     'expected values above 0'),
], ids=[
    'contradictory copies', 'partial copies', 'one parameter absent', 'one too many', 'PAF into relu',
    'other size', 'other architecture', 'missing', 'unknown', 'shape', 'half a normalisation', 'no tensor', 'below 0'])
def test_weights_that_do_not_fit(name, change, message):
    _, weights = authors()
    device = 'meta' if '28' in name else 'cpu'
    model = timm.create_model(name, device=device)
    before = str(model)
    overlay = dict(state_dict=change(weights))
    with pytest.raises(ValueError, match=message) as caught:
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, device=device)
    assert str(caught.value).startswith(f'weights for {name}: ')
    with pytest.raises(ValueError, match=message):
        fit_state_dict(change(weights), model)
    assert str(model) == before


@pytest.mark.parametrize('keep', ['activation.', 'block2.layer.0.activation.'])
def test_one_copy_suffices(keep):
    model, weights = authors()
    weights = {k: v for k, v in weights.items() if 'activation' not in k or k.startswith(keep)}
    assert_same_logits(fitted('wrn10_2_pssilu', weights), model)


@pytest.mark.parametrize('change, message', [
    (lambda w: w, None),
    (lambda w: changed(w, 'layer2.0.act1.alpha', torch.tensor([3.])), 'differs'),
    (lambda w: without(w, r'layer2.0.act1.alpha'), '1 of 7 copies of alpha are missing'),
], ids=['agree', 'contradict', 'partial'])
def test_copies_under_our_own_names(change, message):
    model = timm.create_model('wrn10_2_pssilu')
    places = [n for n, m in timm.create_model('wrn10_2_relu').named_modules() if isinstance(m, nn.ReLU)]
    weights = model.state_dict()
    weights.update({f'{place}.{name}': getattr(model.act, name) for place in places for name in ('alpha', 'beta')})
    if message is None:
        assert fit_state_dict(change(weights), model).keys() == model.state_dict().keys()
    else:
        with pytest.raises(ValueError, match=message):
            fit_state_dict(change(weights), model)


def test_one_activation_a_place_keeps_its_own_values():
    model = randomised(timm.create_model('wrn10_2_relu', act_layer='pssilu'))
    other = fitted('wrn10_2_relu', model.state_dict(), act_layer='pssilu')
    assert_same_logits(other, model)
    with pytest.raises(ValueError, match='one activation for the whole network, the model has 7'):
        fit_state_dict(authors()[1], other)


@pytest.mark.parametrize('file, kwargs, overlay, error', [
    (dict(num_classes=10), dict(num_classes=7), {}, None),
    (dict(num_classes=7), {}, {}, r'the file has 7 classes, the model 10; pass num_classes=7'),
    (dict(num_classes=7), dict(num_classes=3), dict(num_classes=7), None),
    (dict(), dict(num_classes=0), {}, None),
    (dict(), dict(in_chans=1), {}, None),
    (dict(in_chans=1), dict(in_chans=1), {}, None),
    (dict(in_chans=1), dict(), {}, r'the file has 1 input channels, the model 3; pass in_chans=1'),
], ids=[
    'new classifier', 'other classes', 'announced classes', 'headless', 'grey', 'grey file',
    'channels'])
def test_classes_and_channels(file, kwargs, overlay, error):
    source, weights = authors(**file)
    overlay = dict(overlay, state_dict=weights)
    if error is not None:
        with pytest.raises(ValueError, match=error):
            timm.create_model('wrn10_2_pssilu', pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
        return
    model = timm.create_model('wrn10_2_pssilu', pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()
    torch.testing.assert_close(model.layer3[0].conv2.weight, source.layer3[0].conv2.weight)
    cfg = model.pretrained_cfg  # says what is in the file
    assert (cfg['num_classes'], cfg['input_size'][0]) == (source.num_classes, source.in_chans)
    same_classes = source.num_classes == model.num_classes
    if same_classes and source.in_chans == model.in_chans:
        x = torch.rand(2, source.in_chans, 32, 32)
        torch.testing.assert_close(model(x), source(x))
    elif same_classes:  # a grey image through the adapted stem is the image with three equal channels
        x = torch.rand(2, 1, 32, 32)
        torch.testing.assert_close(model(x), source(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_timms_own_weights_load_into_the_networks_for_large_images():
    stock = timm.create_model('resnet18', num_classes=5).eval()
    overlay = dict(state_dict=stock.state_dict())
    model = timm.create_model('resnet18_224_relu', pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5)
    assert_same_logits(model.eval(), stock, size=64)


def test_features_of_published_weights():
    source, weights = authors()
    model = timm.create_model('wrn10_2_pssilu', pretrained=True, features_only=True,
                              pretrained_cfg_overlay=dict(state_dict=weights)).eval()
    x = torch.rand(1, 3, 32, 32)
    for ours, theirs in zip(model(x), source.forward_intermediates(x, intermediates_only=True), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_deepmind_other_statistics(robustbench, tmp_path, caplog):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    theirs = randomised(deepmind(robustbench, mean=mean, std=std, num_classes=7))
    torch.save(theirs.state_dict(), tmp_path / 'c.pt')
    with pytest.raises(ValueError, match='of 7 classes; pass input_mean='):
        pretrained('wrn10_2_relu', tmp_path / 'c.pt', num_classes=7)
    model = pretrained('wrn10_2_relu', tmp_path / 'c.pt', num_classes=7, input_mean=mean, input_std=std)
    assert_same_logits(model, theirs)
    assert not caplog.records  # nothing was guessed


@pytest.mark.parametrize('classes, data, mean, prefix', [
    (10, 'CIFAR-10', 0.4914, ''), (100, 'CIFAR-100', 0.5071, ''), (10, 'CIFAR-10', 0.4914, 'module.0.')])
def test_deepmind_default_is_said(robustbench, tmp_path, caplog, classes, data, mean, prefix):
    weights = deepmind(robustbench, num_classes=classes).state_dict()
    torch.save({'model_state_dict': {prefix + key: value for key, value in weights.items()}}, tmp_path / 'c.pt')
    with caplog.at_level(logging.WARNING):
        model = pretrained('wrn10_2_relu', tmp_path / 'c.pt', num_classes=classes)
    assert f'Taking mean and std of {data},' in caplog.text
    assert f'mean=({mean}' in repr(model) and has_same_padding(model)


@pytest.mark.parametrize('keys', [('mean', 'std'), ('mu', 'sigma'), ('normalize.mean', 'normalize.std')])
def test_normalisation_in_the_file(keys):
    source, weights = authors()
    shift, scale = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    weights.update(zip(keys, (shift, scale), strict=True))
    model = fitted('wrn10_2_pssilu', weights)
    assert_same_logits(model, lambda x: source((x - shift) / scale))
    fit_state_dict(weights, model)  # again, into the model that has it now
    with pytest.raises(ValueError, match=r'the file normalises with .* the model with'):
        fit_state_dict(weights, timm.create_model('wrn10_2_pssilu', **CIFAR10))
    for name in ('resnet18_relu', 'vgg11_relu', 'resnet18_224_relu', 'preact_resnet18_relu'):
        source = timm.create_model(name, num_classes=5).eval()
        model = fitted(name, {**source.state_dict(), keys[0]: shift, keys[1]: scale}, num_classes=5)
        assert_same_logits(model, lambda x, source=source: source((x - shift) / scale))
        assert model.state_dict().keys() - source.state_dict().keys() == {'normalize.mean', 'normalize.std'}
        x = torch.rand(1, 3, 32, 32)
        torch.testing.assert_close(model.forward_intermediates(x)[0], model.forward_features(x))


def test_options_show_in_the_state_dict(tmp_path):
    model = randomised(timm.create_model('wrn10_2_pssilu', pad_type='same', **CIFAR10))
    plain = timm.create_model('wrn10_2_pssilu')
    with pytest.raises(RuntimeError, match='Unexpected key'):
        plain.load_state_dict(model.state_dict())
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'c.pth')
    other = pretrained('wrn10_2_pssilu', tmp_path / 'c.pth')  # takes both from the file
    assert_same_logits(other, model)
    with pytest.raises(ValueError, match='remove pad_type'):
        fit_state_dict(plain.state_dict(), timm.create_model('wrn10_2_pssilu', pad_type='same'))
