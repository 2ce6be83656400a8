"""What AutoAttack found, image by image."""
import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from timm_paf._files import whole_file

__all__ = ['AutoAttackResult', 'ComponentRun', 'pointwise_worst_case', 'write_verdicts']


@dataclass(frozen=True, kw_only=True)
class ComponentRun:
    """What one component of AutoAttack did.

    Args:
        name: Of the component.
        attacked: Images that were sent to it.
        broken: Images that it broke.
        seconds: Time spent on it, over all ranks and all runs up to a resumed one.
        forwards: Images passed through the model.
        backwards: Images for which a gradient was computed.
    """
    name: str
    attacked: int
    broken: int
    seconds: float
    forwards: int
    backwards: int


@dataclass(frozen=True)
class AutoAttackResult:
    """What AutoAttack left standing.

    Attributes:
        robust: (N,) bool on the CPU: classified correctly, clean and after every component.
        clean: (N,) bool on the CPU: classified correctly before any attack.
        x_adv: (N, …) float32 images on the CPU: the one that fooled the model where one did, else the original.
        components: The attacks that were run, in order.
        warnings: What the package's own checks and ours found suspicious, one sentence each.
        broken_by: For each image 'clean' if it was wrong before any attack, the component that broke it, or None.
        runs: What each component did, in order.
    """
    robust: Tensor
    clean: Tensor
    x_adv: Tensor
    components: tuple[str, ...]
    warnings: tuple[str, ...]
    broken_by: tuple[str | None, ...] = ()
    runs: tuple[ComponentRun, ...] = field(default=())

    def verdicts(self) -> dict[str, Tensor]:
        """By component, (N,) bool: not broken by it. Components see only what earlier ones left standing."""
        return {
            name: torch.tensor([broken != name for broken in self.broken_by], dtype=torch.bool)
            for name in self.components}

    def save(self, path: str | os.PathLike, y: Tensor) -> None:
        """Write the images whole or not at all: npz with `image` (N, C, H, W) float32 and `label` (N,) int64.

        The archive is one that `timm_paf.data` reads. `broken_by` (N,) is in it as text, '' for images that stand.

        Args:
            path: File to write; one that is there is replaced.
            y: Labels (N,).
        """
        with whole_file(path) as file:
            np.savez(
                file, image=self.x_adv.numpy(), label=y.cpu().numpy(),
                broken_by=np.array([name or '' for name in self.broken_by]))


def pointwise_worst_case(
        clean: Tensor,
        attacks: Mapping[str, Tensor],
) -> tuple[Tensor, tuple[str | None, ...]]:
    """Images that stand under every attack: an image counts as broken if one of them broke it.

    Args:
        clean: (N,) bool, classified correctly before any attack.
        attacks: By name, (N,) bool: still classified correctly under the attack.

    Returns:
        (N,) bool, standing under all; and for each image 'clean', the first attack that broke it, or None.

    Raises:
        ValueError: If the verdicts are not all of the same images.
    """
    robust = clean.cpu().clone()
    broken_by: list[str | None] = [None if right else 'clean' for right in robust.tolist()]
    for name, standing in attacks.items():
        if standing.dtype != torch.bool or standing.shape != clean.shape:
            raise ValueError(
                f'verdicts of {name} are {standing.dtype} of shape {tuple(standing.shape)}; expected torch.bool of '
                f'shape {tuple(clean.shape)}, one for each image.')
        for index in (robust & ~standing.cpu()).nonzero().flatten().tolist():
            broken_by[index] = name
        robust &= standing.cpu()
    return robust, tuple(broken_by)


def write_verdicts(path: str | os.PathLike, y: Tensor, verdicts: Mapping[str, Tensor], **columns: tuple) -> None:
    """Write a table of verdicts as CSV, whole or not at all: one row an image, 1 where it stands.

    Args:
        path: File to write; one that is there is replaced.
        y: Labels (N,).
        verdicts: By column, (N,) bool.
        columns: Further columns by name, N values each; None becomes an empty field.
    """
    rows = zip(
        range(len(y)), y.tolist(), *(v.int().tolist() for v in verdicts.values()), *columns.values(), strict=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['image', 'label', *verdicts, *columns])
    writer.writerows(rows)
    with whole_file(path) as file:
        file.write(text.getvalue().encode())
