"""What an interrupted AutoAttack has found so far, in a folder.

`run.json` says which run it is: settings, and hashes of images, labels and weights. Each finished batch of a component
is a file of its own, written whole or not at all, so that a kill at any moment costs the batches under way and nothing
else, and the ranks of one run write side by side.
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

__all__ = ['BatchFound', 'RunState', 'fingerprint']

_FORMAT = 1
_NUMBERS = ('seconds', 'forwards', 'backwards')


@dataclass(frozen=True, kw_only=True)
class BatchFound:
    """What a component found in one batch.

    Args:
        attacked: (B,) int64, numbers of the images in the batch.
        broken: (F,) int64, numbers of those that it broke.
        images: (F, …) float32, the images that broke them.
        seconds: Time it took.
        forwards: Images passed through the model.
        backwards: Images for which a gradient was computed.
        warnings: What the package warned of.
    """
    attacked: Tensor
    broken: Tensor
    images: Tensor
    seconds: float
    forwards: int
    backwards: int
    warnings: tuple[str, ...]


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f'{tensor.dtype} {tuple(tensor.shape)} '.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(model: nn.Module, x: Tensor, y: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same for results to belong to one run; plain values.

    Args:
        model: Its weights and the classes of its modules count.
        x: Images.
        y: Labels.
        settings: Plain values that decide what is found.
    """
    state = model.state_dict()
    kinds = '\n'.join(f'{name} {type(module).__qualname__}' for name, module in model.named_modules())
    names = '\n'.join([*state, kinds]).encode()
    return {
        'format': _FORMAT, **settings, 'images': _sha256(x), 'labels': _sha256(y),
        'model': hashlib.sha256(names + _sha256(*state.values()).encode()).hexdigest()}


class RunState:
    """The folder of one run.

    Args:
        path: The folder; None keeps nothing.
        identity: As `fingerprint` gives it.
        tidy: Remove what a killed process left unfinished; for one process, before others write.

    Raises:
        ValueError: If the folder holds something else, or the state of another run; nothing is changed then.
        OSError: If it cannot be written.
    """

    def __init__(
            self,
            path: str | os.PathLike | None,
            identity: dict[str, Any],
            *,
            tidy: bool = False,
    ) -> None:
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        run = self.path / 'run.json'
        if run.exists():
            self._compare(run, identity)
            for unfinished in self.path.glob('.*.tmp') if tidy else ():
                unfinished.unlink()
            return
        # a kill before run.json was written leaves an empty folder or a hidden file
        if self.path.exists() and (not self.path.is_dir() or any(p.name[0] != '.' for p in self.path.iterdir())):
            raise ValueError(f'state {self.path} is there and no state of AutoAttack; choose another name.')
        self.path.mkdir(parents=True, exist_ok=True)
        with whole_file(run) as file:
            file.write(json.dumps(identity, indent=2).encode())

    def _compare(self, run: Path, identity: dict[str, Any]) -> None:
        try:
            before = json.loads(run.read_text())
            assert isinstance(before, dict)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, AssertionError):
            raise ValueError(f'state {self.path}: run.json cannot be read; choose another name.') from None
        differing = []
        for name in sorted({*before, *identity}):
            if before.get(name) != identity.get(name):
                hashed = name in ('images', 'labels', 'model')
                differing.append(
                    f'other {name}' if hashed else f'{name} {before.get(name)} instead of {identity.get(name)}')
        if differing:
            raise ValueError(
                f'state {self.path} is that of another run: {"; ".join(differing)}. Repeat that run, or choose another '
                f'name; nothing was changed.')

    def _file(self, component: int, batch: int) -> Path | None:
        return None if self.path is None else self.path / f'{component:02d}-{batch:06d}.npz'

    def save(self, component: int, batch: int, found: BatchFound) -> None:
        """Write what was found in a batch of a component, both by their numbers; on the disk when it returns."""
        file = self._file(component, batch)
        if file is not None:
            with whole_file(file) as opened:
                np.savez(
                    opened, attacked=found.attacked.numpy(), broken=found.broken.numpy(), images=found.images.numpy(),
                    numbers=np.array([getattr(found, name) for name in _NUMBERS], dtype=np.float64),
                    warnings=np.array(json.dumps(found.warnings)))

    def load(self, component: int, batch: int, attacked: Tensor) -> BatchFound | None:
        """What was found in a batch, or None if it is still to be attacked.

        Raises:
            ValueError: If the file is damaged or about other images.
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
                f'state {file} cannot be read ({reason}); delete this file: its batch is repeated.') from None
        if not torch.equal(arrays['attacked'], attacked):
            raise ValueError(
                f'state {file} is about other images than this batch; the model does not give the same predictions '
                f'every time, or the file was moved. Choose another name.')
        return BatchFound(
            **arrays, seconds=seconds, forwards=int(forwards), backwards=int(backwards), warnings=warnings)
