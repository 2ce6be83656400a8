"""Weights from a file under the names of a model: where the network is in the file, and how it normalises its input."""
import logging
import os
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from timm_paf._normalized import InputNormalization, is_identity, normalization_of
from timm_paf.models._copies import merge_copies, refuse
from timm_paf.models._find import TRANSPARENT, Found, find_network, select_state_dict
from timm_paf.models.options import has_same_padding, input_normalization, use_same_padding
from timm_paf.models.published import (
    CIFAR_STATISTICS,
    OURS,
    PIXELS,
    Statistics,
    published_difference,
    published_normalization,
)

__all__ = ['checkpoint_filter_fn', 'fit_state_dict', 'stated_normalization']

_logger = logging.getLogger(__name__)


def fit_state_dict(
        state_dict: Mapping[str, Any], model: nn.Module, *, adapt: bool = False, file: str | os.PathLike | None = None,
        normalization: Statistics | None = None,
) -> dict[str, Tensor]:
    """Convert weights in any known layout to the names of a model.

    The network is found by its names: under the prefix at which most names of the model are. So the wrappers of the
    file do not matter, and the model may be in a wrapper as well. Other parts of the file, such as a loss with weights,
    are left out with a warning in the log.

    If the network of the file normalises inside or has 'same' padding, the model gets both. Mean and std are those in
    the file, or `normalization`, or those of a published network of this name. DeepMind's files hold none: the model
    keeps its own (`input_mean`, `input_std`), or gets those of CIFAR-10 or CIFAR-100 by the number of classes, with a
    warning in the log.

    Args:
        state_dict: Names to tensors.
        model: The network that the weights are for. Unchanged if they do not fit.
        adapt: Allow other numbers of classes or channels than the model's if `pretrained_cfg` has those of the file.
            timm then adapts these tensors.
        file: Name of the file; by default that in the model's `pretrained_cfg`.
        normalization: Mean and std that the checkpoint states next to the weights.

    Returns:
        The weights under the names of the model's state dict, without those that timm adapts.

    Raises:
        ValueError: If the weights are of another architecture or activation, copies of one activation differ or are
            incomplete, or the network normalises and the model cannot.
    """
    found = find_network(state_dict, model)
    network, layout, label = found.network, found.layout, found.label
    expected = found.expected
    if not found.weights.keys() & expected.keys():
        _check(found.weights, expected, set(), found)
    weights = merge_copies(found.weights, network, label)
    for key, value in expected.items():
        norm, _, name = key.rpartition('.')
        if name == 'num_batches_tracked' and f'{norm}.running_mean' in weights:  # files from before PyTorch 0.4.1
            weights.setdefault(key, torch.zeros_like(value))
    if layout.optional_bias and 'fc.weight' in weights and 'fc.bias' in expected:
        weights.setdefault('fc.bias', weights['fc.weight'].new_zeros(len(weights['fc.weight'])))
    left_to_timm = _settle_shapes(weights, expected, network, label) if adapt else set()
    _check(weights, expected, left_to_timm, found)

    file = file or (getattr(model, 'pretrained_cfg', None) or {}).get('file') or ''
    statistics, remark = _normalization(found, file, normalization)
    _take_options(found, statistics)
    if remark:
        _logger.warning(f'Weights for {label}: {remark}')
    if found.others:
        _logger.warning(
            f'Weights for {label}: {len(found.others)} tensors of the file are not part of the network and are left '
            f'out, such as {next(iter(found.others))}.')
    final = model.state_dict()
    own = {TRANSPARENT.sub('', key.removeprefix(found.outer)): key for key in final if key.startswith(found.outer)}
    inside = found.outer + 'normalize.' if normalization_of(network) is not None else None
    kept = {key: value for key, value in final.items()
            if not key.startswith(found.outer) or (inside and key.startswith(inside))}
    return {**{own[key]: value for key, value in weights.items() if key in own}, **kept}


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """`fit_state_dict` for timm's create_model(..., pretrained=True), which may pass a whole checkpoint."""
    if not any(isinstance(value, Tensor) for value in state_dict.values()):
        state_dict, _ = select_state_dict(state_dict)
    return fit_state_dict(state_dict, model, adapt=True)


def stated_normalization(
        state_dict: Mapping[str, Any], model: nn.Module, *, file: str | os.PathLike = '',
        normalization: Statistics | None = None,
) -> Statistics | None:
    """Mean and std of the network of these weights, as `fit_state_dict` finds them.

    Zeros and ones if it is known to take pixels in [0, 1] as they are; None if nothing is known.
    """
    return _normalization(find_network(state_dict, model), file, normalization)[0]


def _normalization(
        found: Found, file: str | os.PathLike, stated: Statistics | None) -> tuple[Statistics | None, str]:
    """Mean and std of the file's network, and a remark about them for the log; None if they are not known."""
    if difference := published_difference(file):
        refuse(found.label, difference)
    if (stated := found.statistics or stated) is not None:
        return stated, ''
    if found.own_statistics is not None:
        return None, ''
    known = published_normalization(file, num_classes=found.num_classes)
    advice = 'for other values pass input_mean= and input_std= to the model.'
    if known is not None:
        return known, '' if known == PIXELS else (
            'the file does not hold mean and std of the normalisation. Taking those of the published network of '
            f'this name; {advice}')
    if found.layout.deepmind:
        if found.num_classes not in CIFAR_STATISTICS:
            refuse(found.label, "DeepMind's file does not hold mean and std of its network of "
                                f'{found.num_classes} classes; pass input_mean= and input_std= to the model.')
        name, values = CIFAR_STATISTICS[found.num_classes]
        return values, (f'the file does not hold mean and std of the normalisation. Taking mean and std of {name}, as '
                        f'in the published networks; {advice}')
    # the authors of the paper do not normalise
    authors = any('activation' in key.split('.') for key in found.weights.keys() - found.expected.keys())
    cfg = getattr(found.network, 'pretrained_cfg', None) or {}
    ours = found.layout is OURS and (cfg.get('mean'), cfg.get('std')) == PIXELS
    if (ours or authors) and not re.search(r'(?:^|\.)[1-9]\d*\.$', found.prefix):  # a Sequential may normalise first
        return PIXELS, ''
    return None, (
        'the file does not say whether its network normalises its input; taking pixels in [0, 1] as they are. If it '
        'was trained on normalised images, load it into timm_paf.attacks.Normalized(model, mean, std).')


def _take_options(found: Found, statistics: Statistics | None) -> None:
    """Give the model the normalisation and padding of the file's network."""
    network, label = found.network, found.label
    if has_same_padding(network) and not found.same:
        refuse(label, "the model has pad_type='same', but the weights were trained without; remove pad_type.")
    if statistics is not None:
        theirs = InputNormalization(*statistics)
        if (ours := found.own_statistics) is not None:
            if not (is_identity(ours.mean, ours.std) and is_identity(theirs.mean, theirs.std)) and not all(
                    torch.allclose(getattr(ours, name).flatten().float().cpu(), getattr(theirs, name).flatten())
                    for name in ('mean', 'std')):
                refuse(label, f'the file normalises with ({theirs.extra_repr()}), the model with '
                              f'({InputNormalization.extra_repr(ours)}).')
        elif is_identity(theirs.mean, theirs.std):
            pass
        elif not isinstance(getattr(network, 'normalize', None), nn.Identity):
            refuse(label, f'the weights are of a network that normalises inside, with {theirs.extra_repr()}; this '
                          'architecture does not support it. Load them into Normalized(model, mean, std).')
        else:
            stem = next(module.weight for module in network.modules() if isinstance(module, nn.Conv2d))
            network.normalize = input_normalization(
                *statistics, stem.shape[1], device=stem.device, dtype=stem.dtype).train(network.training)
    if found.same:
        use_same_padding(network)


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


def _check(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], ignored: set[str], found: Found) -> None:
    """Raise ValueError, in one line, if a name is missing or unknown, or a shape differs."""
    faults = [f'{key} is missing' for key in expected if key not in weights and key not in ignored]
    faults += [f'{key} is unknown' for key in weights if key not in expected and key not in ignored]
    faults += [
        f'{key} has shape {tuple(value.shape)}, expected {tuple(expected[key].shape)}'
        for key, value in weights.items()
        if key in expected and key not in ignored and value.shape != expected[key].shape]
    if faults:
        more = f' and {len(faults) - 3} more' if len(faults) > 3 else ''
        place = f', under {found.prefix}' if found.prefix else ''
        theirs, ours = _outline(weights), _outline(expected)
        outlines = f' The file has {theirs}, the model {ours}.' if theirs != ours else ''
        refuse(found.label, f'{"; ".join(faults[:3])}{more} (read as {found.layout.name}{place}).{outlines}')


def _outline(weights: Mapping[str, Tensor]) -> str:
    """Blocks and channels of each stage, such as '4+4+4 blocks of 160/320/640 channels'; else the first names."""
    blocks: dict[str, set[str]] = {}
    widths: dict[str, int] = {}
    for key, value in weights.items():
        if match := re.match(r'(layer\d+)\.(\d+)\.', key):
            blocks.setdefault(match[1], set()).add(match[2])
            if value.ndim == 4:
                widths[match[1]] = len(value)
    if not blocks:
        return f'{len(weights)} tensors such as {", ".join([*weights][:3])}'
    depths = '+'.join(str(len(found)) for found in blocks.values())
    activation = ' and '.join(sorted({key.rsplit('.', 1)[-1] for key in weights} & {'alpha', 'beta'}))
    return f'{depths} blocks of {"/".join(map(str, widths.values()))} channels{activation and ", " + activation}'
