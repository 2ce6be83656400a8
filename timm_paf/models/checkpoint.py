"""Weights from checkpoint files, read without executing code from them."""
import argparse
import logging
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from timm_paf._normalized import Normalized, normalization_of
from timm_paf.models._find import DM_IMPROVES_AT, select_state_dict
from timm_paf.models.published import CIFAR_STATISTICS, PIXELS, Statistics
from timm_paf.models.state_dict import fit_state_dict, stated_normalization

__all__ = ['checkpoint_normalization', 'load_weights', 'read_checkpoint', 'select_state_dict']

_logger = logging.getLogger(__name__)


def _dtype(name: str, *arguments: Any) -> np.dtype:
    """A dtype of numbers or text, in place of `numpy.dtype` while unpickling; one of objects would run code."""
    if np.dtype(name).kind not in 'biufcUS':
        raise ValueError(f'it holds a numpy dtype {name}')
    return np.dtype(name, *arguments)


# argparse.Namespace is in checkpoints of timm's train.py, numpy's scalars, such as a best accuracy, in many
_ALLOWED: list[Any] = [
    argparse.Namespace, (_dtype, 'numpy.dtype'), *{type(np.dtype(code)) for code in '?bhilqBHILQefdFDUS'},
    *((np.float64(0).__reduce__()[0], f'numpy.{core}.multiarray.scalar') for core in ('core', '_core'))]


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint file without running code from it, by safetensors or `torch.load(weights_only=True)`.

    Args:
        path: A checkpoint of any trainer, or a bare state dict; in safetensors format if its name ends in
            `.safetensors`. It may hold tensors, plain values and numpy's numbers.

    Returns:
        The dictionary in the file, on the CPU.

    Raises:
        FileNotFoundError: If the file does not exist.
        IsADirectoryError: If it is a folder.
        ValueError: If it is not a checkpoint, is damaged, or holds other objects.
    """
    path = Path(path)
    content: Any
    if path.is_dir():
        raise IsADirectoryError(f'checkpoint {path} is a folder; give a file in it, such as model_best.pth.tar.')
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path}: there is no such file; give the path of a .pth.tar or .pth file.')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about the pickle protocol of files that cannot be read anyway
            if path.suffix == '.safetensors':
                content = load_file(path)
            else:
                with torch.serialization.safe_globals(_ALLOWED):
                    content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # the unpickler raises all kinds of errors for files that are no checkpoints
        text = re.sub(r'\x1b\[[\d;]*m', '', str(error))
        if foreign := re.search(r'GLOBAL ([\w.]+)|Unsupported class ([\w.]+)', text):
            reason = f'it holds an object of {foreign[1] or foreign[2]}; save the state_dict alone if you trust it'
        else:
            inner = re.search(r'WeightsUnpickler error:\s*(.+)', text)
            said = (inner[1] if inner else text).strip() or 'the file is empty'
            reason = f'{type(error).__name__}: {said.splitlines()[0][:160]}'
        raise ValueError(
            f'checkpoint {path} cannot be read ({reason}); expected tensors and plain values, as torch.save writes.',
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f'checkpoint {path} holds a {type(content).__name__}; expected a dictionary with weights.')
    return dict(content)


def load_weights(model: nn.Module, path: str | os.PathLike, *, use_ema: bool | None = None) -> str:
    """Load the weights of a checkpoint into a model, strictly; in our layout or a published one.

    Args:
        model: The network, or a wrapper around it; unchanged if the weights do not fit.
        path: As `read_checkpoint`.
        use_ema: As `select_state_dict`.

    Returns:
        Key of the loaded weights, as `select_state_dict` returns.

    Raises:
        ValueError: As `read_checkpoint` and `select_state_dict`, and if the weights are of another network.
    """
    checkpoint = read_checkpoint(path)
    state_dict, source = select_state_dict(checkpoint, use_ema=use_ema)
    try:
        fitting = fit_state_dict(state_dict, model, file=path, normalization=_stated(checkpoint, model))
    except ValueError as error:
        name = type(model.model if isinstance(model, Normalized) else model).__name__
        raise ValueError(f'checkpoint {path} does not fit {name}: {error}') from error
    model.load_state_dict(fitting, strict=True)
    return source


def checkpoint_normalization(path: str | os.PathLike, model: nn.Module) -> Statistics | None:
    """Mean and std with which the network of a checkpoint normalises its input, in units of [0, 1].

    Args:
        path: As `read_checkpoint`.
        model: The network that the weights are for; it is not changed.

    Returns:
        Mean and std in the file, or those of a published network with the file's name (`published_normalization`);
        zeros and ones if the network is known to take pixels in [0, 1] as they are; None if nothing is known.

    Raises:
        ValueError: As `read_checkpoint` and `select_state_dict`, and if several stds or means contradict each other.
    """
    checkpoint = read_checkpoint(path)
    state_dict, _ = select_state_dict(checkpoint)
    return stated_normalization(state_dict, model, file=path, normalization=_stated(checkpoint, model))


def _stated(checkpoint: Mapping[str, Any], model: nn.Module) -> Statistics | None:
    """Mean and std in a checkpoint next to the weights: its own entries, or arguments of timm's train.py."""
    if 'run' in checkpoint:  # of this package: a network that normalises has mean and std among its weights
        return PIXELS
    arguments = checkpoint.get('args')
    for source in (checkpoint, vars(arguments) if isinstance(arguments, argparse.Namespace) else {}):
        mean, std = source.get('mean'), source.get('std')
        if isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple)) and mean:
            return [float(value) for value in mean], [float(value) for value in std]
    keys = checkpoint.get('model_state_dict', {}) if DM_IMPROVES_AT in checkpoint else {}
    classes = getattr(model, 'num_classes', 0)
    first = any(re.match(r'(?:module\.)?1\.', key) for key in keys)
    if first and normalization_of(model) is None and classes in CIFAR_STATISTICS:
        name, statistics = CIFAR_STATISTICS[classes]
        _logger.warning(
            'DM-Improves-AT put a normalisation in front of this network, and the file does not hold its mean and std. '
            f'Taking those of {name}, as its code does.')
        return statistics
    return None
