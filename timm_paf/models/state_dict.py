"""Weights from a file under the names of a model: where the network is in the file, and how it normalises its input."""
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from timm_paf._normalized import InputNormalization, Normalized
from timm_paf.models._copies import merge_copies, refuse
from timm_paf.models.options import has_same_padding, input_normalization, use_same_padding
from timm_paf.models.published import (
    CIFAR_STATISTICS,
    LAYOUTS,
    OURS,
    PIXELS,
    Layout,
    Statistics,
    published_difference,
    published_normalization,
)

__all__ = ['checkpoint_filter_fn', 'fit_state_dict', 'stated_normalization']

_logger = logging.getLogger(__name__)

# torch's wrappers, which can be around any module of a network, and the modules of `use_same_padding`
_TRANSPARENT = re.compile(r'(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|same)\.')
_STD_OF = {'mean': 'std', 'mu': 'sigma', 'new_mean': 'new_std', '_mean': '_std', 'pixel_mean': 'pixel_std'}


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
    found = _find(state_dict, model)
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
    own = {_TRANSPARENT.sub('', key.removeprefix(found.outer)): key for key in final if key.startswith(found.outer)}
    inside = found.outer + 'normalize.' if isinstance(getattr(network, 'normalize', None), InputNormalization) else None
    kept = {key: value for key, value in final.items()
            if not key.startswith(found.outer) or (inside and key.startswith(inside))}
    return {**{own[key]: value for key, value in weights.items() if key in own}, **kept}


checkpoint_filter_fn = partial(fit_state_dict, adapt=True)  # for timm's create_model(..., pretrained=True)


def stated_normalization(
        state_dict: Mapping[str, Any], model: nn.Module, *, file: str | os.PathLike = '',
        normalization: Statistics | None = None,
) -> Statistics | None:
    """Mean and std of the network of these weights, as `fit_state_dict` finds them; None if they are not known."""
    return _normalization(_find(state_dict, model), file, normalization)[0]


@dataclass(kw_only=True)
class _Found:
    """The network in a file, and the model that it is for."""
    label: str  # name of the model, for messages
    network: nn.Module  # the model without its wrappers
    outer: str  # prefix of the network in the model's state dict
    wrapper: Normalized | None  # around the network
    expected: dict[str, Tensor]  # state of the network under plain names, without its normalisation
    prefix: str  # of the network in the file
    layout: Layout
    weights: dict[str, Tensor]  # the network's, under our names
    statistics: Statistics | None  # mean and std in the file
    others: list[str]  # keys of the file outside of the network
    same: bool  # whether the convolutions of the file's network have 'same' padding

    @property
    def num_classes(self) -> int:
        """Number of classes in the file."""
        cfg = getattr(self.network, 'pretrained_cfg', None) or {}
        weight = self.weights.get(f'{cfg.get("classifier", "fc")}.weight')
        return len(weight) if weight is not None else getattr(self.network, 'num_classes', 0)

    @property
    def own_statistics(self) -> InputNormalization | None:
        """The normalisation that the model has already."""
        first = getattr(self.network, 'normalize', None)
        return first if isinstance(first, InputNormalization) else self.wrapper


def _find(state_dict: Mapping[str, Any], model: nn.Module) -> _Found:
    label = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__
    network, outer, wrapper = model, '', None
    while inner := next((name for kind, name in (
            (Normalized, 'model'), ((DataParallel, DistributedDataParallel, AveragedModel), 'module'))
            if isinstance(network, kind)), '_orig_mod' if hasattr(network, '_orig_mod') else ''):
        wrapper = network if isinstance(network, Normalized) else wrapper
        network, outer = getattr(network, inner), f'{outer}{inner}.'
    own = {_TRANSPARENT.sub('', key): value for key, value in network.state_dict().items()}
    expected = own
    if isinstance(getattr(network, 'normalize', None), InputNormalization):
        expected = {key: value for key, value in own.items() if not key.startswith('normalize.')}
    file = {_TRANSPARENT.sub('', str(key)): value for key, value in state_dict.items()}
    prefix, layout = _locate(file, own, label)
    inside = {key.removeprefix(prefix): value for key, value in file.items() if key.startswith(prefix)}
    weights = {
        layout.rename(key): value for key, value in inside.items()
        if not (layout.unused and re.match(layout.unused, key))}
    for key, value in weights.items():
        if key in expected and not isinstance(value, Tensor):
            refuse(label, f'{key} is of type {type(value).__name__}; expected a tensor.')
    weights = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    others = {key: value for key, value in file.items() if isinstance(value, Tensor) and not (
        key.startswith(prefix) and layout.rename(key.removeprefix(prefix)) in expected)}
    statistics = _statistics(others, network, prefix, label)
    for key in set(others) - set(statistics[1]):  # unknown names in the network are errors, others are not
        if key.startswith(prefix) or key == 'n_averaged' or key.endswith('.n_averaged') or any(
                _equal(others[key], inside.get(name)) for name in _suffixes(key)):
            del others[key]
    for key in statistics[1]:
        others.pop(key, None)
        weights.pop(layout.rename(key.removeprefix(prefix)), None)
    return _Found(
        label=label, network=network, outer=outer, wrapper=wrapper, expected=expected, prefix=prefix, layout=layout,
        weights=weights, statistics=statistics[0], others=list(others),
        same=layout.deepmind or (layout is OURS and any('.same.' in key for key in state_dict)))


def _suffixes(key: str) -> Iterator[str]:
    """`a.b.c`, `b.c`, `c`."""
    yield key
    while '.' in key:
        key = key.partition('.')[2]
        yield key


def _locate(file: Mapping[str, Any], own: Mapping[str, Tensor], label: str) -> tuple[str, Layout]:
    """The prefix and the layout with which most names of a file are those of the model; ours and the shortest first."""
    counts = Counter(
        (OURS, key[:len(key) - len(name)]) for key in file for name in _suffixes(key) if name in own)
    for layout in LAYOUTS:
        for prefix in {key.removesuffix(layout.has[0]) for key in file if layout.has[0] in _suffixes(key)}:
            names = {key.removeprefix(prefix): value for key, value in file.items() if key.startswith(prefix)}
            if layout.fits(names):
                counts[layout, prefix] = sum(layout.rename(name) in own for name in names)
    if not counts:
        return '', OURS
    most = max(counts.values())
    best = sorted(
        (place for place, count in counts.items() if count == most),
        key=lambda place: (place[0] is not OURS, len(place[1])))
    (layout, prefix), *others = best
    for _, other in others:
        if any(isinstance(value, Tensor) and prefix + key.removeprefix(other) in file
               and not _equal(value, file[prefix + key.removeprefix(other)])
               for key, value in file.items() if key.startswith(other)):
            refuse(label, f'the file holds two networks with these names and other values, under '
                          f'{prefix or "no prefix"} and {other}; expected one.')
    return prefix, layout


def _equal(one: Any, other: Any) -> bool:
    return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)


def _statistics(
        others: Mapping[str, Tensor], network: nn.Module, prefix: str, label: str,
) -> tuple[Statistics | None, list[str]]:
    """Mean and std in a file, of the network or of a wrapper around it, and their keys."""
    stem = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    sizes = (1, 2, 3, 4) if stem is None else (1, stem.in_channels)
    found: dict[str, list[list[float]]] = {}
    for key, mean in others.items():
        parent, dot, word = key.rpartition('.')
        std_key = f'{parent}{dot}{_STD_OF.get(word)}'
        std = others.get(std_key)
        if std is not None and mean.numel() == std.numel() and mean.numel() in sizes:
            found[key] = found[std_key] = [
                values.flatten().expand(sizes[-1] if stem else len(values)).tolist() for values in (mean, std)]
    for key in others.keys() - found.keys():
        name = key.removeprefix(prefix).removeprefix('normalize.')
        for pair in _STD_OF.items():
            if key.startswith(prefix) and name in pair:
                refuse(label, f'there is only one of {" and ".join(pair)}; expected both.')
    (mean, std), *more = found.values() or [([], [])]
    for other in more:
        if other != [mean, std]:
            refuse(label, f'the file holds different means and stds, {", ".join(found)}; expected one of each.')
    return (mean, std) if found else None, list(found)


def _normalization(
        found: _Found, file: str | os.PathLike, stated: Statistics | None) -> tuple[Statistics | None, str]:
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
        return (None, '') if known == PIXELS else (known, (
            'the file does not hold mean and std of the normalisation. Taking those of the published network of '
            f'this name; {advice}'))
    if found.layout.deepmind:
        if found.num_classes not in CIFAR_STATISTICS:
            refuse(found.label, "DeepMind's file does not hold mean and std of its network of "
                                f'{found.num_classes} classes; pass input_mean= and input_std= to the model.')
        name, values = CIFAR_STATISTICS[found.num_classes]
        return values, (f'the file does not hold mean and std of the normalisation. Taking mean and std of {name}, as '
                        f'in the published networks; {advice}')
    authors = any('activation' in key.split('.') for key in found.weights)  # their networks take pixels in [0, 1]
    if (found.layout is not OURS and not authors) or re.search(r'(?:^|\.)[1-9]\d*\.$', found.prefix):
        return None, ('the file does not say whether its network normalises its input; taking pixels in [0, 1] as they '
                      'are. If the accuracy is low, pass input_mean= and input_std= to the model.')
    return None, ''


def _take_options(found: _Found, statistics: Statistics | None) -> None:
    """Give the model the normalisation and padding of the file's network."""
    network, label = found.network, found.label
    if has_same_padding(network) and not found.same:
        refuse(label, "the model has pad_type='same', but the weights were trained without; remove pad_type.")
    if statistics is not None:
        theirs = InputNormalization(*statistics)
        if (ours := found.own_statistics) is not None:
            if not all(torch.allclose(getattr(ours, name).flatten().float().cpu(), getattr(theirs, name).flatten())
                       for name in ('mean', 'std')):
                refuse(label, f'the file normalises with ({theirs.extra_repr()}), the model with '
                              f'({InputNormalization.extra_repr(ours)}).')
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


def _check(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], ignored: set[str], found: _Found) -> None:
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
