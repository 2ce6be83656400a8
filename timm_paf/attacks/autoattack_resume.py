"""Whether AutoAttack would go on from a folder, told before hours of other work."""
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from timm_paf.attacks.autoattack import _checked, _components, _possible, _Settings
from timm_paf.attacks.autoattack_state import RunState, fingerprint
from timm_paf.attacks.autoattack_subject import Warnings, check_images
from timm_paf.attacks.compiled import Compile, CompileSettings
from timm_paf.attacks.threat import Eps

__all__ = ['check_state']


def check_state(
        state: str | os.PathLike,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Eps,
        norm: str = 'linf',
        version: str = 'standard',
        attacks: Sequence[str] | None = None,
        batch_size: int = 250,
        seed: int = 0,
        device: torch.device | None = None,
        amp_dtype: torch.dtype | None = None,
        spare: bool = True,
        compile: Compile = False,
) -> None:
    """See that `autoattack`, called with the same arguments, would take the folder for its own; writes nothing.

    Args:
        state: The folder; one that is not there or holds nothing yet is fine.
        model: As the other arguments, those of `autoattack`.
        x: Images.
        y: Labels.
        eps: Radius.
        norm: Norm of the ball.
        version: Of AutoAttack.
        attacks: Components of version 'custom'.
        batch_size: Images a batch.
        seed: Seed of every component.
        device: Where the model is; its first parameter's if None.
        amp_dtype: Precision of the attacks.
        spare: Whether passes are left out.
        compile: How passes are compiled.

    Raises:
        ValueError: If the folder holds something else or the state of another run, or an argument is not as expected.
    """
    path = Path(state)
    if not path.exists() or (path.is_dir() and all(entry.name[0] == '.' for entry in path.iterdir())):
        return
    device = device or next((p.device for p in model.parameters()), x.device)
    radius = _checked(eps, norm, batch_size, seed, amp_dtype)
    classes = check_images(model, x, y, device=device)
    settings = _Settings(
        radius=radius, norm=norm, version=version, batch_size=batch_size, seed=seed, amp_dtype=amp_dtype, spare=spare,
        compile=CompileSettings.of(compile),
        components=_possible(_components(version, attacks), classes, x, norm, Warnings()))
    x, y = x.detach().float().contiguous(), y.detach().cpu()
    RunState(path, fingerprint(model, x, y, settings.plain(device)))
