"""State of an AutoAttack run in a folder, for exact resume.

`run.json` identifies the run: settings, and hashes of images, labels and model. Every finished batch of a component is
one file, written as a whole or not at all. So a kill costs only the batches under attack, and processes write in
parallel.
"""
import hashlib
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from timm_paf._files import whole_file

__all__ = ['BatchResult', 'RunState', 'fingerprint', 'is_empty']

_FORMAT = 2
_HASHES = ('images', 'labels', 'model')


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """Result of a component on one batch.

    Args:
        attacked: (B,) int64, numbers of the images in the batch.
        broken: (F,) int64, numbers of the images that the component broke.
        images: (F, …) float32, adversarial images for these.
        seconds: Time of the attack.
        forwards: Images passed through the model.
        backwards: Images for which a gradient was computed.
        warnings: Warnings during the attack.
    """
    attacked: Tensor
    broken: Tensor
    images: Tensor
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
    """Identity of a run as JSON values: the settings, and hashes of images, labels and model.

    Args:
        model: Its weights and the classes of its modules are hashed.
        x: Images.
        y: Labels.
        settings: JSON values that decide the result.
    """
    weights = model.state_dict()
    modules = '\n'.join(f'{name} {type(module).__qualname__}' for name, module in model.named_modules())
    names = '\n'.join([*weights, modules]).encode()
    return {
        'format': _FORMAT, **settings, 'images': _sha256(x), 'labels': _sha256(y),
        'model': hashlib.sha256(names + _sha256(*weights.values()).encode()).hexdigest()}


def is_empty(path: Path) -> bool:
    """Whether a new run can use the folder: it does not exist, or has only hidden files (of a run that was killed)."""
    return not path.exists() or (path.is_dir() and all(entry.name[0] == '.' for entry in path.iterdir()))


class RunState:
    """The folder of one run.

    Args:
        path: The folder; None stores nothing.
        identity: Result of `fingerprint`.
        clean_up: Remove unfinished files of a killed process. Only for one process, before others write.

    Raises:
        ValueError: If the folder has other files or the state of another run. Nothing is changed then.
        OSError: If the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike | None, identity: dict[str, Any], *, clean_up: bool = False) -> None:
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        run = self.path / 'run.json'
        if run.exists():
            self._compare(run, identity)
            for unfinished in self.path.glob('.*.tmp') if clean_up else ():
                unfinished.unlink()
            return
        if not is_empty(self.path):
            raise ValueError(f'state {self.path} exists and is not a state of AutoAttack; choose another name.')
        self.path.mkdir(parents=True, exist_ok=True)
        with whole_file(run) as file:
            file.write(json.dumps(identity, indent=2).encode())

    def _compare(self, run: Path, identity: dict[str, Any]) -> None:
        try:
            stored = json.loads(run.read_text())
            if not isinstance(stored, dict):
                raise ValueError
        except (OSError, ValueError):
            raise ValueError(f'state {self.path}: run.json cannot be read; choose another name.') from None
        differing = [
            f'other {name}' if name in _HASHES else f'{name} {stored.get(name)} instead of {identity.get(name)}'
            for name in sorted({*stored, *identity}) if stored.get(name) != identity.get(name)]
        if differing:
            raise ValueError(
                f'state {self.path} belongs to another run: {"; ".join(differing)}. Repeat that run, or choose another '
                f'name; nothing was changed.')

    def _file(self, component: int, batch: int) -> Path | None:
        return None if self.path is None else self.path / f'{component:02d}-{batch:06d}.npz'

    def save(self, component: int, batch: int, result: BatchResult) -> None:
        """Write the result of a batch, identified by the numbers of component and batch. It is on disk on return."""
        file = self._file(component, batch)
        if file is not None:
            with whole_file(file) as opened:
                np.savez(
                    opened, attacked=result.attacked.numpy(), broken=result.broken.numpy(),
                    images=result.images.numpy(), warnings=np.array(json.dumps(result.warnings)),
                    numbers=np.array([result.seconds, result.forwards, result.backwards], dtype=np.float64))

    def load(self, component: int, batch: int, attacked: Tensor) -> BatchResult | None:
        """Read the result of a batch; None if the batch is not finished.

        Raises:
            ValueError: If the file is damaged or has the result of other images.
        """
        file = self._file(component, batch)
        if file is None or not file.exists():
            return None
        try:
            with np.load(file, allow_pickle=False) as content:
                arrays = {name: torch.from_numpy(content[name]) for name in ('attacked', 'broken', 'images')}
                seconds, forwards, backwards = content['numbers'].tolist()
                warnings = tuple(json.loads(str(content['warnings'])))
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
            reason = ' '.join(str(error).split())[:100]
            raise ValueError(
                f'state {file} cannot be read ({reason}); delete this file, and its batch is attacked again.') from None
        if not torch.equal(arrays['attacked'], attacked):
            raise ValueError(
                f'state {file} has the result of other images: the model does not give the same predictions every '
                f'time, or the file was moved. Choose another name.')
        return BatchResult(
            **arrays, seconds=seconds, forwards=int(forwards), backwards=int(backwards), warnings=warnings)
