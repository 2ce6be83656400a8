"""The weights of a checkpoint, and where in them a network is: wrappers of other trainers, and their normalisation."""
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from timm_paf._normalized import InputNormalization, Normalized, normalization_of
from timm_paf.models._copies import refuse
from timm_paf.models.published import LAYOUTS, OURS, Layout, Statistics

__all__ = ['DM_IMPROVES_AT', 'TRANSPARENT', 'Found', 'find_network', 'select_state_dict']

# names of the weights in checkpoints, the preferred first: averaged ones, raw ones
_AVERAGED = ('state_dict_ema', 'model_ema', 'ema_state_dict', 'ema', 'swadict')
_RAW = ('state_dict', 'model', 'model_state_dict', 'net', 'network', 'last')
DM_IMPROVES_AT = 'unaveraged_model_state_dict'  # next to it, 'model_state_dict' holds averaged weights

# torch's wrappers, which can be around any module of a network, and the modules of `use_same_padding`
TRANSPARENT = re.compile(r'(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|same)\.')
_STD_OF = {'mean': 'std', 'mu': 'sigma', 'new_mean': 'new_std', '_mean': '_std', 'pixel_mean': 'pixel_std'}


def select_state_dict(
        checkpoint: Mapping[str, Any], *, use_ema: bool | None = None) -> tuple[dict[str, Tensor], str]:
    """Select the weights of a checkpoint.

    Args:
        checkpoint: Result of `read_checkpoint`.
        use_ema: True for the averaged (EMA) weights, False for the raw weights, None for the averaged weights if there
            are any, else the raw ones. The average of the authors' code (`swadict`) is selected by True only.

    Returns:
        The state dict and its key in the checkpoint; 'weights' for a bare state dict.

    Raises:
        ValueError: If the checkpoint does not have these weights.
    """
    averaged, raw = [*_AVERAGED], [*_RAW]
    if DM_IMPROVES_AT in checkpoint:
        averaged.append('model_state_dict')
        raw = [DM_IMPROVES_AT]
    for key, value in checkpoint.items():
        if isinstance(value, Mapping) and 'n_averaged' in value:  # torch's AveragedModel
            averaged.append(key)
            raw = [name for name in raw if name != key]
    preferred = [name for name in averaged if name != 'swadict'] + raw
    holding = [key for key, value in checkpoint.items() if isinstance(value, Mapping) and _has_tensors(value)]
    for source in {True: averaged, False: raw, None: preferred}[use_ema]:
        if source in holding:
            return dict(checkpoint[source]), source
    keys = ', '.join([*map(str, checkpoint)][:6] + ['…'] * (len(checkpoint) > 6)) or 'nothing'
    if use_ema and 'n_averaged' not in checkpoint:
        raise ValueError(f'the checkpoint has no averaged weights (state_dict_ema); it holds {keys}.')
    if _has_tensors(checkpoint):
        return dict(checkpoint), 'weights'
    if len(holding) == 1:
        return dict(checkpoint[holding[0]]), holding[0]
    raise ValueError(f'the checkpoint holds no state_dict; it holds {keys}.')


def _has_tensors(content: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


@dataclass(kw_only=True)
class Found:
    """A network in a file, and the model that it is for."""
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
        first = normalization_of(self.network)
        return self.wrapper if first is None else first


def find_network(state_dict: Mapping[str, Any], model: nn.Module) -> Found:
    """Find the network of a model in a state dict, by the names in the model.

    Raises:
        ValueError: If there are several with other values, or several normalisations, or a value is no tensor.
    """
    network, outer, wrapper = model, '', None
    while inner := next((name for kind, name in (
            (Normalized, 'model'), ((DataParallel, DistributedDataParallel, AveragedModel), 'module'))
            if isinstance(network, kind)), '_orig_mod' if hasattr(network, '_orig_mod') else ''):
        wrapper = network if isinstance(network, Normalized) else wrapper
        network, outer = getattr(network, inner), f'{outer}{inner}.'
    label = (getattr(network, 'pretrained_cfg', None) or {}).get('architecture') or type(network).__name__
    own = {TRANSPARENT.sub('', key): value for key, value in network.state_dict().items()}
    expected = own
    if normalization_of(network) is not None:
        expected = {key: value for key, value in own.items() if not key.startswith('normalize.')}
    file = {  # without the counter of AveragedModel
        key: value for key, value in ((TRANSPARENT.sub('', str(key)), value) for key, value in state_dict.items())
        if key in own or key.split('.')[-1] != 'n_averaged'}
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
        if key.startswith(prefix) or any(_equal(others[key], inside.get(name)) for name in _suffixes(key)):
            del others[key]
    for key in statistics[1]:
        others.pop(key, None)
        weights.pop(layout.rename(key.removeprefix(prefix)), None)
    return Found(
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
                          f'{prefix or "no prefix"} and {other}; expected one: save that one alone in a new file.')
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
    if not found:
        return None, []
    (first, second), *others_found = found.values()
    if any(other != [first, second] for other in others_found):
        refuse(label, f'the file holds different means and stds, {", ".join(found)}; expected one of each.')
    return (first, second), list(found)
