"""Weights from checkpoint files, read without executing code from them."""
import argparse
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor, nn

from timm_paf.models.published import fit_state_dict

__all__ = ['load_weights', 'read_checkpoint', 'select_state_dict']


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint file without running code from it, by safetensors or `torch.load(weights_only=True)`.

    Args:
        path: A checkpoint of timm's CheckpointSaver, of this package or of the paper's authors, or a bare state dict;
            in safetensors format if its name ends in `.safetensors`.

    Returns:
        The dictionary in the file, on the CPU.

    Raises:
        FileNotFoundError: If the file does not exist.
        IsADirectoryError: If it is a folder.
        ValueError: If it is not a checkpoint, is damaged, or holds objects other than tensors and plain values.
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
                with torch.serialization.safe_globals([argparse.Namespace]):  # of timm's train.py
                    content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # the unpickler raises all kinds of errors for files that are no checkpoints
        reason = f'{type(error).__name__}: {error}'.splitlines()[0][:160]
        raise ValueError(
            f'checkpoint {path} cannot be read ({reason}); expected tensors and plain values, as torch.save writes.',
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f'checkpoint {path} holds a {type(content).__name__}; expected a dictionary with weights.')
    return dict(content)


def select_state_dict(
        checkpoint: Mapping[str, Any], *, use_ema: bool | None = None) -> tuple[dict[str, Tensor], str]:
    """Select the weights of a checkpoint.

    Args:
        checkpoint: Result of `read_checkpoint`.
        use_ema: True for the averaged (EMA) weights, False for the raw weights, None for the averaged weights if there
            are any, else the raw ones. The average of the authors' code (`swadict`) is selected by True only.

    Returns:
        The state dict, without prefixes of wrappers, and its key in the checkpoint; 'weights' for a bare state dict.

    Raises:
        ValueError: If the checkpoint does not have these weights.
    """
    sources = {
        True: ('state_dict_ema', 'model_ema', 'swadict'), False: ('state_dict', 'model'),
        None: ('state_dict_ema', 'model_ema', 'state_dict', 'model')}
    for source in sources[use_ema]:
        if isinstance(checkpoint.get(source), Mapping) and checkpoint[source]:
            return clean_state_dict(dict(checkpoint[source])), source
    keys = ', '.join([*map(str, checkpoint)][:6] + ['…'] * (len(checkpoint) > 6)) or 'nothing'
    if use_ema:
        raise ValueError(f'the checkpoint has no averaged weights (state_dict_ema); it holds {keys}.')
    if checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
        return clean_state_dict(dict(checkpoint)), 'weights'
    raise ValueError(f'the checkpoint holds no state_dict; it holds {keys}.')


def load_weights(model: nn.Module, path: str | os.PathLike, *, use_ema: bool | None = None) -> str:
    """Load the weights of a checkpoint into a model, strictly; in our layout or a published one (docs/checkpoints.md).

    Args:
        model: The network; unchanged if the weights do not fit.
        path: As `read_checkpoint`.
        use_ema: As `select_state_dict`.

    Returns:
        Key of the loaded weights, as `select_state_dict` returns.

    Raises:
        ValueError: As `read_checkpoint` and `select_state_dict`, and if the weights are of another network.
    """
    state_dict, source = select_state_dict(read_checkpoint(path), use_ema=use_ema)
    try:
        fitting = fit_state_dict(state_dict, model)
    except ValueError as error:
        raise ValueError(
            f'checkpoint {path} does not fit {type(model).__name__}: {error} Does it have another --model, '
            'number of classes or number of channels?') from error
    model.load_state_dict(fitting, strict=True)
    return source
