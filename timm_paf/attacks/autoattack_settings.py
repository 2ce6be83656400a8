"""Settings of AutoAttack: their checks, and which components they select."""
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from timm_paf.attacks.checks import check_integers
from timm_paf.attacks.compiled import Compile, CompileSettings
from timm_paf.attacks.threat import ThreatModel

__all__ = ['AutoAttackSettings']

_VERSIONS = {'standard': ('apgd-ce', 'apgd-t', 'fab-t', 'square'), 'rand': ('apgd-ce', 'apgd-dlr')}
_COMPONENTS = ('apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'square')
_CLASSES = {'apgd-t': 4, 'apgd-dlr': 3}  # the targeted DLR loss compares the four largest logits, DLR the three


@dataclass(frozen=True, kw_only=True)
class AutoAttackSettings(ThreatModel):
    """The arguments of `autoattack` that decide the result, together with model, images and labels."""
    device: torch.device
    version: str = 'standard'
    attacks: Sequence[str] | None = None
    batch_size: int = 250
    seed: int = 0
    amp_dtype: torch.dtype | None = None
    compile: Compile = False

    def __post_init__(self) -> None:
        super().__post_init__()
        attacks, version = self.attacks, self.version
        if version not in (*_VERSIONS, 'custom') or (version == 'custom') != (attacks is not None):
            raise ValueError(
                f'version = {version!r} with attacks = {attacks}: expected standard or rand without a list of attacks, '
                'or custom with a list.')
        if attacks is not None and (isinstance(attacks, str) or not attacks or not set(attacks) <= set(_COMPONENTS)):
            raise ValueError(f'attacks = {attacks!r}: expected a list of some of {", ".join(_COMPONENTS)}.')
        check_integers(1, batch_size=self.batch_size)
        check_integers(0, seed=self.seed)
        if self.amp_dtype not in (None, torch.bfloat16):
            raise ValueError(
                f'amp_dtype = {self.amp_dtype}: expected torch.bfloat16; in float16 small gradients become 0.')
        CompileSettings.of(self.compile)

    def components(self, x: Tensor, classes: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Components to run on these images, and those left out because their loss needs more classes."""
        chosen = _VERSIONS.get(self.version) or tuple(self.attacks or ())
        if 'square' in chosen and (x.dim() != 4 or (self.norm != 'linf' and min(x.shape[-2:]) < 5)):
            raise ValueError(
                f'the Square attack needs images of shape (N, C, H, W), for L2 and L1 with at least 5 x 5 pixels, got '
                f"{tuple(x.shape)}; to leave it out, use version='custom' and attacks=[...] without 'square'.")
        possible = tuple(name for name in chosen if classes >= _CLASSES.get(name, 2))
        if not possible:
            raise ValueError(f'none of {", ".join(chosen)} works with {classes} classes; choose other attacks.')
        return possible, tuple(name for name in chosen if name not in possible)

    def identity(self, components: tuple[str, ...]) -> dict[str, Any]:
        """JSON values that have to be equal for a run to be resumed."""
        compiled = {} if self.compiled is None else {'compile': [self.compiled.backend, self.compiled.mode]}
        return {
            'eps': self.radius, 'norm': self.norm, 'version': self.version, 'components': list(components),
            'batch_size': self.batch_size, 'seed': self.seed, 'amp_dtype': str(self.amp_dtype),
            **compiled, 'device': self.device.type, 'torch': torch.__version__,
            'pyautoattack': metadata.version('pyautoattack')}

    @property
    def compiled(self) -> CompileSettings | None:
        """`compile` as settings; None if nothing is compiled."""
        return CompileSettings.of(self.compile)
