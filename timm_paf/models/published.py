"""Weights of published networks, converted to the names of the networks of this package.

The keys of a file show its layout. A new layout is one more `Layout` in `_LAYOUTS`. Known are those of arXiv 2110.05626
and RobustBench's `Dai2021Parameterizing` (one copy of the activation in each block), RobustBench's generic WideResNet,
ResNet and PreActResNet, DeepMind's WideResNet (arXiv 2010.03593), and our own.
"""
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from timm.models import clean_state_dict
from torch import Tensor, nn

from timm_paf._normalized import InputNormalization
from timm_paf.models._copies import is_activation_key, merge_copies, refuse
from timm_paf.models.options import has_same_padding, input_normalization, use_same_padding

__all__ = ['checkpoint_filter_fn', 'fit_state_dict']

_logger = logging.getLogger(__name__)

# mean and std of DeepMind's networks, by the number of classes; their files do not hold them
_DEEPMIND_STATISTICS = {
    10: ('CIFAR-10', (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    100: ('CIFAR-100', (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of the tensors in a family of published networks."""
    name: str  # in messages
    has: tuple[str, ...]  # keys that every file has, and that the model itself does not have
    lacks: tuple[str, ...] = ()  # keys that no file has
    # (regular expression at the beginning of a key, replacement); only the first match counts
    renames: tuple[tuple[str, str], ...] = ()
    unused: str | None = None  # regular expression of keys that the original forward pass does not use
    optional_bias: bool = False  # the classifier may lack a bias
    deepmind: bool = False  # strided convolutions have 'same' padding, and the network normalises inside

    def fits(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether weights have the names of this layout."""
        return all(key in weights for key in self.has) and not any(key in weights for key in self.lacks)

    def rename(self, key: str) -> str:
        """Convert a key to our name for it."""
        for pattern, replacement in self.renames:
            if re.match(pattern, key):
                return re.sub(f'^{pattern}', replacement, key)
        return key


_OURS = Layout(name='our layout', has=())
_LAYOUTS = (
    Layout(
        name="RobustBench's WideResNet",
        has=('block1.layer.0.conv1.weight', 'bn1.weight'),
        renames=(
            (r'block(\d)\.layer\.(\d+)\.bn(\d)\.', r'layer\1.\2.norm\3.'),
            (r'block(\d)\.layer\.(\d+)\.convShortcut\.', r'layer\1.\2.shortcut.'),
            (r'block(\d)\.layer\.(\d+)\.', r'layer\1.\2.'), (r'bn1\.', 'norm.')),
        unused=r'sub_block1\.',
        optional_bias=True),
    Layout(
        name="DeepMind's WideResNet",
        has=('init_conv.weight', 'layer.0.block.0.conv_0.weight'),
        renames=(
            (r'init_conv\.', 'conv1.'),
            *((rf'layer\.{stage}\.block\.(\d+)\.{theirs}\.', rf'layer{stage + 1}.\1.{ours}.')
              for stage in range(3)
              for theirs, ours in (
                  ('batchnorm_0', 'norm1'), ('relu_0', 'act1'), ('conv_0', 'conv1'),
                  ('batchnorm_1', 'norm2'), ('relu_1', 'act2'), ('conv_1', 'conv2'), ('shortcut', 'shortcut'))),
            (r'batchnorm\.', 'norm.'), (r'relu\.', 'act.'), (r'logits\.', 'fc.'),
        ),
        deepmind=True),
    Layout(
        name="RobustBench's ResNet",
        has=('linear.weight', 'bn1.weight', 'layer1.0.bn1.weight'),
        renames=((r'(layer\d\.\d+)\.shortcut\.', r'\1.downsample.'), (r'linear\.', 'fc.'))),
    Layout(
        name="RobustBench's PreActResNet",
        has=('linear.weight', 'layer1.0.bn1.weight'),
        lacks=('bn1.weight',),
        renames=(
            (r'(layer\d\.\d+)\.bn(\d)\.', r'\1.norm\2.'), (r'(layer\d\.\d+)\.shortcut\.0\.', r'\1.shortcut.'),
            (r'bn\.', 'norm.'), (r'linear\.', 'fc.'))),
)


def fit_state_dict(state_dict: Mapping[str, Any], model: nn.Module, *, adapt: bool = False) -> dict[str, Tensor]:
    """Convert weights in any known layout to the names of a model.

    If the network of the file normalises inside or has 'same' padding, the model gets both. DeepMind's files do not
    hold mean and std: the model keeps its own (`input_mean`, `input_std`), or gets those of CIFAR-10 or CIFAR-100 by
    the number of classes, with a warning in the log.

    Args:
        state_dict: Names to tensors; prefixes of wrappers (`module.`, `_orig_mod.`, `model.`) are removed.
        model: The network that the weights are for. Unchanged if they do not fit.
        adapt: Allow other numbers of classes or channels than the model's if `pretrained_cfg` has those of the file.
            timm then adapts these tensors.

    Returns:
        The weights under the names of the model's state dict, without those that timm adapts.

    Raises:
        ValueError: If the weights are of another architecture or activation, or copies of one activation differ or are
            incomplete.
    """
    label = getattr(model, 'pretrained_cfg', {}).get('architecture') or type(model).__name__
    weights = _unwrap(state_dict, label)
    own = model.state_dict()
    layout = next((each for each in _LAYOUTS if each.fits(weights) and not each.fits(own)), _OURS)
    statistics = _take_statistics(weights, label)
    weights = {
        _plain(layout.rename(key)): value for key, value in weights.items()
        if not (layout.unused and re.match(layout.unused, key))}
    same = layout.deepmind or (layout is _OURS and any('.same.' in key for key in state_dict))
    expected = {_plain(key): value for key, value in own.items() if not key.startswith('normalize.')}

    weights = merge_copies(weights, model, label)
    for key, value in expected.items():
        norm, _, name = key.rpartition('.')
        if name == 'num_batches_tracked' and f'{norm}.running_mean' in weights:  # files from before PyTorch 0.4.1
            weights.setdefault(key, torch.zeros_like(value))
    if layout.optional_bias and 'fc.weight' in weights and 'fc.bias' in expected:
        weights.setdefault('fc.bias', weights['fc.weight'].new_zeros(len(weights['fc.weight'])))
    left_to_timm = _settle_shapes(weights, expected, model, label) if adapt else set()
    _check(weights, expected, left_to_timm, layout.name, label)

    _take_options(model, same, statistics, len(weights['fc.weight']) if layout.deepmind else None, label)
    final = model.state_dict()
    weights.update({key: value for key, value in final.items() if key.startswith('normalize.')})
    return {key: weights[_plain(key)] for key in final if _plain(key) in weights}


checkpoint_filter_fn = partial(fit_state_dict, adapt=True)  # for timm's create_model(..., pretrained=True)


def _unwrap(state_dict: Mapping[str, Any], label: str) -> dict[str, Tensor]:
    weights = clean_state_dict(dict(state_dict))
    if {key.split('.')[0] == 'model' for key in weights if not key.startswith('normalize.')} == {True, False}:
        refuse(label, "some keys start with 'model.' and others do not; expected the weights of one network.")
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            refuse(label, f'{key} is of type {type(value).__name__}; expected names and tensors.')
    return {key.removeprefix('model.'): value for key, value in weights.items()}


def _plain(key: str) -> str:
    return key.replace('.same.', '.')  # of `use_same_padding`


def _take_statistics(weights: dict[str, Tensor], label: str) -> tuple[list[float], list[float]] | None:
    """Remove mean and standard deviation from the weights and return them; None if there are none."""
    for mean, std in (('mean', 'std'), ('mu', 'sigma'), ('normalize.mean', 'normalize.std')):
        if mean in weights and std in weights:
            return weights.pop(mean).flatten().tolist(), weights.pop(std).flatten().tolist()
        if mean in weights or std in weights:
            refuse(label, f'there is only one of {mean} and {std}; expected both.')
    return None


def _take_options(
        model: nn.Module, same: bool, statistics: tuple[Sequence[float], Sequence[float]] | None,
        deepmind_classes: int | None, label: str,
) -> None:
    """Give the model the normalisation and padding of the file's network."""
    first = getattr(model, 'normalize', None)
    if has_same_padding(model) and not same:
        refuse(label, "the model has pad_type='same', but the weights were trained without; remove pad_type.")
    if statistics is None and deepmind_classes is not None and not isinstance(first, InputNormalization):
        if deepmind_classes not in _DEEPMIND_STATISTICS:
            refuse(label, f"DeepMind's file does not hold mean and std of its network of {deepmind_classes} classes; "
                           'pass input_mean= and input_std= to the model.')
        name, mean, std = _DEEPMIND_STATISTICS[deepmind_classes]
        statistics = mean, std
        _logger.warning(
            f'Weights for {label}: the file does not hold mean and std of the normalisation. Taking mean and std of '
            f'{name}, as in the published networks; for other values pass input_mean= and input_std= to the model.')
    if statistics is not None:
        if first is None:
            refuse(label, 'the weights are of a network that normalises inside; this architecture does not support it.')
        stem = next(module.weight for module in model.modules() if isinstance(module, nn.Conv2d))
        layer = input_normalization(*statistics, stem.shape[1], device=stem.device, dtype=stem.dtype)
        if isinstance(first, InputNormalization) and not all(
                torch.allclose(first.get_buffer(name), layer.get_buffer(name)) for name in ('mean', 'std')):
            refuse(label, f'the file normalises with ({layer.extra_repr()}), the model with ({first.extra_repr()}).')
        model.normalize = layer.train(model.training)
    if same:
        use_same_padding(model)


def _settle_shapes(
        weights: dict[str, Tensor], expected: dict[str, Tensor], model: nn.Module, label: str) -> set[str]:
    """Names of the tensors that timm adapts. Corrects `pretrained_cfg` where file and model agree."""
    cfg = cast(dict[str, Any], model.pretrained_cfg)
    classifier, stem = cfg.get('classifier'), cfg.get('first_conv')
    left: set[str] = set()
    weight = weights.get(f'{classifier}.weight')
    if weight is not None and weight.ndim == 2:
        number = len(weight)
        if model.num_classes == number:
            cfg['num_classes'] = number
        elif cfg['num_classes'] == number:
            left |= {f'{classifier}.weight', f'{classifier}.bias'}
        else:
            refuse(label, f'the file has {number} classes, the model {model.num_classes}; pass num_classes={number}, '
                          f'or pretrained_cfg_overlay=dict(…, num_classes={number}) for a new classifier.')
    weight, own = weights.get(f'{stem}.weight'), expected.get(f'{stem}.weight')
    if weight is not None and own is not None and weight.ndim == own.ndim == 4:
        in_file, in_model = weight.shape[1], own.shape[1]
        if in_file == in_model:
            cfg['input_size'] = (in_file, *cfg['input_size'][1:])
        elif cfg['input_size'][0] == in_file and weight.shape[2:] == own.shape[2:]:
            left.add(f'{stem}.weight')
        else:
            refuse(label, f'the file has {in_file} input channels, the model {in_model}; pass in_chans={in_file}.')
    return left


def _check(weights: dict[str, Tensor], expected: dict[str, Tensor], ignored: set[str], layout: str, label: str) -> None:
    """Raise ValueError, in one line, if a name is missing or unknown, or a shape differs."""
    faults = [f'{key} is missing' for key in expected if key not in weights and key not in ignored]
    faults += [f'{key} is unknown' for key in weights if key not in expected and key not in ignored]
    faults += [
        f'{key} has shape {tuple(value.shape)}, expected {tuple(expected[key].shape)}'
        for key, value in weights.items()
        if key in expected and key not in ignored and value.shape != expected[key].shape]
    if faults:
        more = f' and {len(faults) - 2} more' if len(faults) > 2 else ''
        theirs, ours = _outline(weights), _outline(expected)
        outlines = f' The file has {theirs}, the model {ours}.' if theirs != ours else ''
        refuse(label, f'{"; ".join(faults[:2])}{more} (read as {layout}).{outlines}')


def _outline(weights: Mapping[str, Tensor]) -> str:
    """Blocks and channels of each stage, such as '4+4+4 blocks of 160/320/640 channels'."""
    blocks: dict[str, set[str]] = {}
    widths: dict[str, int] = {}
    for key, value in weights.items():
        if match := re.match(r'(layer\d+)\.(\d+)\.', key):
            blocks.setdefault(match[1], set()).add(match[2])
            if value.ndim == 4:
                widths[match[1]] = len(value)
    if not blocks:
        return f'{len(weights)} tensors'
    depths = '+'.join(str(len(found)) for found in blocks.values())
    activation = ' and '.join(sorted({key.rsplit('.', 1)[-1] for key in weights if is_activation_key(key)}))
    return f'{depths} blocks of {"/".join(map(str, widths.values()))} channels{activation and ", " + activation}'
