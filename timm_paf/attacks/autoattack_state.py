"""Settings of an AutoAttack run, and its state in a folder: `run.json` and a file per finished batch of a component."""
import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from timm_paf._files import whole_file, write_text
from timm_paf.attacks.checks import check_integers, choose
from timm_paf.attacks.compiled import Compile, CompileSettings
from timm_paf.attacks.threat import ThreatModel

__all__ = [
    'COMPONENTS', 'AutoAttackSettings', 'BatchResult', 'components_for', 'find_run', 'load_or_compute', 'open_run']

_FORMAT = 2
_HASHES = ('images', 'labels', 'model')
_VERSIONS = {'standard': ('apgd-ce', 'apgd-t', 'fab-t', 'square'), 'rand': ('apgd-ce', 'apgd-dlr')}
#: Names of the parts of AutoAttack.
COMPONENTS = ('apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'square')
_CLASSES = {'apgd-t': 4, 'apgd-dlr': 3}  # the targeted DLR loss compares the four largest logits, DLR the three


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f'{tensor.dtype} {tuple(tensor.shape)} '.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _square_fits(height: int, width: int) -> bool:
    """Whether Square of `pyautoattack` can start in L2 and L1 on images of this size.

    It starts with as many squares of side height // 5 as fit, but places the first one away from the edge, by half of
    what five squares leave of the height. The last one then ends outside of some images, such as 12x12 and 24x24, and
    the package fails. The original code has the same rule; squares in other places would be another attack.
    """
    side = height // 5
    first = (height - 5 * side) // 2
    if side < 2 or width < side:  # a square of one pixel may lie outside, and without a column there is none
        return side > 0
    return first <= height % side and first <= width % side


def components_for(version: str, attacks: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """The components of a version, or of a list for 'custom', whose loss works with this number of classes."""
    return tuple(name for name in _VERSIONS.get(version, attacks or ()) if classes >= _CLASSES.get(name, 2))


@dataclass(frozen=True, kw_only=True)
class AutoAttackSettings(ThreatModel):
    """Settings of `autoattack`."""
    device: torch.device
    version: str = 'standard'
    attacks: Sequence[str] | None = None
    batch_size: int = 250
    seed: int = 0
    amp_dtype: torch.dtype | None = None
    compile: Compile = False
    capture: str = 'auto'  # does not change the result
    compiled: CompileSettings | None = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        attacks, version = self.attacks, self.version
        if version not in (*_VERSIONS, 'custom') or (version == 'custom') != (attacks is not None):
            raise ValueError(
                f'version = {version!r} with attacks = {attacks}: expected standard or rand without a list of attacks, '
                'or custom with a list.')
        if attacks is not None and (isinstance(attacks, str) or not attacks or not set(attacks) <= set(COMPONENTS)):
            raise ValueError(f'attacks = {attacks!r}: expected a list of some of {", ".join(COMPONENTS)}.')
        choose('capture', self.capture, dict.fromkeys(['auto', 'none']))
        check_integers(1, batch_size=self.batch_size)
        check_integers(0, seed=self.seed)
        if self.amp_dtype not in (None, torch.bfloat16):
            raise ValueError(
                f'amp_dtype = {self.amp_dtype}: expected torch.bfloat16; in float16 small gradients become 0.')
        object.__setattr__(self, 'compiled', CompileSettings.of(self.compile))

    def components(self, x: Tensor, classes: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Components to run on these images, and those left out because their loss needs more classes."""
        chosen = _VERSIONS.get(self.version) or tuple(self.attacks or ())
        possible = components_for(self.version, self.attacks, classes)
        if 'square' in chosen and (x.dim() != 4 or (self.norm != 'linf' and not _square_fits(*x.shape[-2:]))):
            others = [name for name in chosen if name != 'square'] or ['apgd-ce']
            raise ValueError(
                f'square, a part of AutoAttack, cannot attack images of shape {tuple(x.shape[1:])} in {self.norm}: '
                f"it needs (C, H, W) images that its first squares fit. Use other parts: version='custom', "
                f'attacks={others}, or on the command line --autoattack {",".join(others)}.')
        if not possible:
            raise ValueError(f'none of {", ".join(chosen)} works with {classes} classes; choose other attacks.')
        return possible, tuple(name for name in chosen if name not in possible)

    def identity(self, components: tuple[str, ...], model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
        """JSON values that have to be equal for a run to be resumed: settings, and hashes of the rest."""
        compiled = {} if self.compiled is None else {'compile': [self.compiled.backend, self.compiled.mode]}
        weights = model.state_dict()
        modules = '\n'.join(f'{name} {type(module).__qualname__}' for name, module in model.named_modules())
        names = '\n'.join([*weights, modules]).encode()
        return {
            'format': _FORMAT, 'eps': self.radius, 'norm': self.norm, 'version': self.version,
            'components': list(components), 'batch_size': self.batch_size, 'seed': self.seed,
            'amp_dtype': str(self.amp_dtype), **compiled, 'device': self.device.type, 'torch': torch.__version__,
            'pyautoattack': metadata.version('pyautoattack'), 'images': _sha256(x), 'labels': _sha256(y),
            'model': hashlib.sha256(names + _sha256(*weights.values()).encode()).hexdigest()}


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
            f'state {path} belongs to another run: {"; ".join(differing)}. Repeat that run, or choose another name.')
    return True


def open_run(path: Path, identity: dict[str, Any]) -> None:
    """Create the folder of a run, or remove what a killed process left in it. For one process, before others write."""
    if find_run(path, identity):
        for unfinished in path.glob('.*.tmp'):
            unfinished.unlink()
        return
    path.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(identity, indent=2), path / 'run.json')


def load_or_compute(
        folder: Path | None, number: tuple[int, int], attacked: Tensor, compute: Callable[[Tensor], BatchResult],
) -> BatchResult:
    """The result of a batch of a component from the folder, else from `compute` and saved there."""
    if folder is None:
        return compute(attacked)
    file = folder / '{:02d}-{:06d}.npz'.format(*number)
    if not file.exists():
        result = compute(attacked)
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
