"""Input normalisation of a network: what the settings, a checkpoint or timm's `pretrained_cfg` say about it.

Pixels are in [0, 1] outside of a network, so a network that was trained on normalised images normalises inside.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from timm_paf._normalized import InputNormalization, Normalized, is_identity, normalization_of
from timm_paf.engine.shared_config import EvaluationConfig
from timm_paf.evaluation import clean_accuracy
from timm_paf.models import checkpoint_normalization, load_weights
from timm_paf.models.options import input_normalization
from timm_paf.models.published import CIFAR10, HALF, IMAGENET, PIXELS

__all__ = ['LoadedNetwork', 'check_normalization', 'inner_model', 'load_network', 'set_normalization', 'statistics']

_Found = tuple[Sequence[float], Sequence[float], str]  # mean, std, who says so
_NONE: _Found = (0.,), (1.,), ''
_CANDIDATES = {
    'no normalisation': PIXELS, 'that of CIFAR-10': CIFAR10, 'that of ImageNet': IMAGENET, 'mean and std 0.5': HALF}


class LoadedNetwork(NamedTuple):
    """A network with weights from a file."""
    model: nn.Module  # takes images in [0, 1]
    weights: str  # key of the weights in the file
    note: str  # a line about the normalisation; empty if the file says that there is none
    warning: str  # why the normalisation is not known; empty if it is
    guessed: bool  # neither the settings nor the file say what the normalisation is


def statistics(model: nn.Module) -> tuple[list[float], list[float]] | None:
    """Mean and std with which a network normalises inside; None if it does not."""
    if (layer := normalization_of(model)) is None:
        return None
    return layer.mean.flatten().tolist(), layer.std.flatten().tolist()


def inner_model(model: nn.Module) -> nn.Module:
    """The network inside of `Normalized`."""
    return model.model if isinstance(model, Normalized) else model


def normalized(model: nn.Module, mean: Sequence[float], std: Sequence[float], *, layer: bool = False) -> nn.Module:
    """The network with this normalisation inside, in place of its own; zeros and ones are none, unless `layer`.

    Networks of this package with a layer `normalize` are changed in place. Others are wrapped in `Normalized`.
    """
    inner = inner_model(model)
    if not layer and is_identity(mean, std):
        if _has_layer(inner):
            inner.normalize = nn.Identity()
        return inner
    if not _has_layer(inner):
        return Normalized(inner, mean, std)
    stem = next(p for p in inner.parameters() if p.dim() == 4)
    mean, std = (list(values) * (stem.shape[1] if len(values) == 1 else 1) for values in (mean, std))
    inner.normalize = input_normalization(mean, std, stem.shape[1], device=stem.device, dtype=stem.dtype)
    return inner


def set_normalization(
        model: nn.Module, config: EvaluationConfig, *, name: str, own: bool, pretrained: bool,
) -> tuple[nn.Module, str]:
    """The network with the normalisation of the settings, and a line about it.

    Without settings, a model with weights of timm (`pretrained`) gets that of its `pretrained_cfg`, and any other model
    stays as it is. The user's `own` network takes pixels in [0, 1]; the line mentions its `pretrained_cfg`.
    """
    found = _from_settings(config) or (_from_cfg(model, name) if pretrained or config.normalize else None)
    if found is None:
        if config.normalize:
            raise ValueError(f'--normalize: {name} does not say its mean and std; give --input-mean and --input-std.')
        if own and (cfg := _from_cfg(model, name)) is not None and statistics(model) is None:
            mean, std = (', '.join(f'{value:.4g}' for value in values) for values in cfg[:2])
            return model, (
                f'{name} gets pixels in [0, 1] as they are. If its weights need images normalised with mean {mean} and '
                f'std {std}, as its pretrained_cfg says, pass Normalized.of_timm(model).')
        return model if own else _described(model), ''
    return _described(normalized(model, *found[:2])), _line(*found)


def load_network(
        model: nn.Module, path: str | Path, config: EvaluationConfig, *, name: str, use_ema: bool | None = None,
) -> LoadedNetwork:
    """Load the weights of a checkpoint into a network, with the normalisation that belongs to them.

    It comes from the settings; else from the network, if it normalises already; else from the file; else from timm's
    `pretrained_cfg` of the model. If none of them says anything, the network gets images in [0, 1] as they are, and
    `warning` says so.

    Args:
        model: The network, changed in place.
        path: The checkpoint.
        config: Settings with `input_mean`, `input_std` and `normalize`.
        name: Name of the model in messages.
        use_ema: As `load_weights`.

    Raises:
        ValueError: As `load_weights`.
    """
    if _from_settings(config) is None and (own := statistics(model)) is not None:
        weights = load_weights(model, path, use_ema=use_ema)
        return LoadedNetwork(model, weights, _line(*own, 'from the model'), '', False)
    given, says = _from_settings(config), checkpoint_normalization(path, model)
    stated = None if says is None else (*says, f'from {Path(path).name}')
    found = given or stated or _from_cfg(model, name)
    if says is None or not _has_layer(model):  # else `load_weights` sets it
        model = normalized(model, *(stated or found or _NONE)[:2], layer=True)
    weights = load_weights(model, path, use_ema=use_ema)
    model = _described(normalized(model, *(found or _NONE)[:2]))
    if found is None:
        return LoadedNetwork(model, weights, '', (
            f'neither {path} nor {name} says how the network normalises images; it gets pixels in [0, 1] as they are. '
            'If it was trained on normalised images, all numbers are wrong: give --input-mean and --input-std, or '
            '--no-normalize to confirm.'), True)
    silent = given is None and statistics(model) is None
    return LoadedNetwork(model, weights, '' if silent else _line(*found), '', given is None and says is None)


def check_normalization(model: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> str:
    """Compare a guessed normalisation with other common ones on some images; a warning if another one is better.

    Args:
        model: The network for images in [0, 1]; left as found.
        x: Images (N, C, H, W) in [0, 1].
        y: Labels (N,).
        settings: `batch_size` and `device`, as `clean_accuracy`.
    """
    if x.shape[1] != 3:
        return ''
    found, own = {'': clean_accuracy(model, x, y, **settings)}, statistics(model) or _NONE[:2]
    for label, values in _CANDIDATES.items():
        found[label] = clean_accuracy(normalized(model, *values), x, y, **settings)
    normalized(model, *own)  # a layer `normalize` was changed in place
    best = max(found, key=lambda label: found[label].correct)
    if found[best].interval()[0] <= found[''].interval()[1]:
        return ''
    mean, std = (' '.join(f'{value:g}' for value in values) for values in _CANDIDATES[best])
    return (
        f'the normalisation is probably wrong: of {found[best].total} images, {found[""].correct} are classified '
        f'correctly, but {found[best].correct} with {best}. Try --input-mean {mean} --input-std {std}.')


def _has_layer(model: nn.Module) -> bool:
    """Whether a network of this package has a layer for it."""
    return isinstance(getattr(model, 'normalize', None), (nn.Identity, InputNormalization))


def _described(model: nn.Module) -> nn.Module:
    """The network, with the mean and std that hold in its `pretrained_cfg`, from where other code takes them."""
    inner = inner_model(model)
    if isinstance(cfg := getattr(inner, 'pretrained_cfg', None), dict):
        mean, std = (statistics(model) if inner is not model else None) or PIXELS  # a layer `normalize` takes pixels
        cast(Any, inner).pretrained_cfg = {**cfg, 'mean': tuple(mean), 'std': tuple(std)}
    return model


def _line(mean: Sequence[float], std: Sequence[float], source: str) -> str:
    if is_identity(mean, std):
        return f'no input normalisation ({source})'
    shown = (', '.join(f'{value:.4g}' for value in values) for values in (mean, std))
    return 'input normalisation inside the model: mean {}, std {} ({})'.format(*shown, source)


def _from_settings(config: EvaluationConfig) -> _Found | None:
    if config.normalize is False:
        return *_NONE[:2], '--no-normalize'
    return (config.input_mean, config.input_std, '--input-mean and --input-std') if config.input_mean else None


def _from_cfg(model: nn.Module, name: str) -> _Found | None:
    """Mean and std in timm's `pretrained_cfg`, if it says that the model takes normalised images."""
    cfg: Any = getattr(model, 'pretrained_cfg', None) or {}
    mean, std = cfg.get('mean'), cfg.get('std')
    if not mean or not std or is_identity(mean, std):
        return None
    if getattr(model, 'in_chans', len(mean)) != len(mean):  # timm adds up the weights of the channels
        mean, std = ([sum(values) / len(values)] for values in (mean, std))
    return mean, std, f'pretrained_cfg of {name}; --input-mean and --input-std, or --no-normalize change it'
