"""State of an AutoAttack run in a folder, for exact resume.

`run.json` identifies the run. Every finished batch of a component is one file, written as a whole or not at all. So a
kill costs only the batches under attack, and processes write in parallel.
"""
import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from timm_paf._files import whole_file

__all__ = ['BatchResult', 'find_run', 'fingerprint', 'load_or_compute', 'open_run']

_FORMAT = 2
_HASHES = ('images', 'labels', 'model')


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """Result of a component on one batch, see `ComponentRun`."""
    attacked: Tensor  # (B,) int64, numbers of the images in the batch
    broken: Tensor  # (F,) int64, numbers of the images that the component broke
    images: Tensor  # (F, …) float32, adversarial images for these
    seconds: float = 0.
    forwards: int = 0
    backwards: int = 0
    warnings: tuple[str, ...] = ()


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f'{tensor.dtype} {tuple(tensor.shape)} '.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(model: nn.Module, x: Tensor, y: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    """Identity of a run as JSON values: the settings, and hashes of images, labels, weights and module classes."""
    weights = model.state_dict()
    modules = '\n'.join(f'{name} {type(module).__qualname__}' for name, module in model.named_modules())
    names = '\n'.join([*weights, modules]).encode()
    return {
        'format': _FORMAT, **settings, 'images': _sha256(x), 'labels': _sha256(y),
        'model': hashlib.sha256(names + _sha256(*weights.values()).encode()).hexdigest()}


def find_run(path: Path, identity: dict[str, Any]) -> bool:
    """Whether a folder has the state of this run; False if a new run can use it. ValueError if it can not."""
    run = path / 'run.json'
    if not run.exists():
        if path.exists() and not (path.is_dir() and all(entry.name[0] == '.' for entry in path.iterdir())):
            raise ValueError(f'state {path} exists and is not a state of AutoAttack; choose another name.')
        return False  # hidden files are of a run that was killed
    try:
        stored = json.loads(run.read_text())
        names = sorted(stored.keys() | identity.keys())
    except (OSError, ValueError, AttributeError):
        raise ValueError(f'state {path}: run.json cannot be read; choose another name.') from None
    differing = [
        f'other {name}' if name in _HASHES else f'{name} {stored.get(name)} instead of {identity.get(name)}'
        for name in names if stored.get(name) != identity.get(name)]
    if differing:
        raise ValueError(
            f'state {path} belongs to another run: {"; ".join(differing)}. Repeat that run, or choose another name; '
            f'nothing was changed.')
    return True


def open_run(path: Path, identity: dict[str, Any]) -> None:
    """Create the folder of a run, or remove what a killed process left in it. For one process, before others write."""
    if find_run(path, identity):
        for unfinished in path.glob('.*.tmp'):
            unfinished.unlink()
        return
    path.mkdir(parents=True, exist_ok=True)
    with whole_file(path / 'run.json') as file:
        file.write(json.dumps(identity, indent=2).encode())


def load_or_compute(file: Path | None, attacked: Tensor, compute: Callable[[Tensor], BatchResult]) -> BatchResult:
    """The result of a batch from its file, else from `compute`; it is on the disk then. None stores nothing."""
    if file is None or not file.exists():
        result = compute(attacked)
        if file is not None:
            with whole_file(file) as opened:
                np.savez(
                    opened, attacked=attacked.numpy(), broken=result.broken.numpy(), images=result.images.numpy(),
                    warnings=np.array(json.dumps(result.warnings)),
                    numbers=np.array([result.seconds, result.forwards, result.backwards], dtype=np.float64))
        return result
    try:
        with np.load(file, allow_pickle=False) as content:
            stored, broken, images = (torch.from_numpy(content[name]) for name in ('attacked', 'broken', 'images'))
            seconds, forwards, backwards = content['numbers'].tolist()
            warnings = tuple(json.loads(str(content['warnings'])))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        reason = ' '.join(str(error).split())[:100]
        raise ValueError(
            f'state {file} cannot be read ({reason}); delete this file, and its batch is attacked again.') from None
    if not torch.equal(stored, attacked):
        raise ValueError(
            f'state {file} has the result of other images: the model does not give the same predictions every time, or '
            f'the file was moved. Choose another name.')
    return BatchResult(
        attacked=stored, broken=broken, images=images, seconds=seconds, forwards=int(forwards),
        backwards=int(backwards), warnings=warnings)
