"""Results of AutoAttack for each image."""
import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from timm_paf._files import whole_file

__all__ = ['AutoAttackResult', 'ComponentRun', 'pointwise_worst_case', 'write_verdicts']


@dataclass(frozen=True, kw_only=True)
class ComponentRun:
    """Counts and cost of one component of AutoAttack.

    Attributes:
        name: Name of the component.
        attacked: Images that it attacked.
        broken: Images that it broke.
        seconds: Time spent on it, summed over processes and over interrupted and resumed runs.
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
    """Robust images, adversarial images, and what each component did.

    Attributes:
        robust: (N,) bool on the CPU: classified correctly, clean and after every component.
        clean: (N,) bool on the CPU: classified correctly before any attack.
        x_adv: (N, …) float32 images on the CPU: the adversarial image where one was found, else the original.
        components: Names of the components that were run, in order.
        warnings: Warnings of the package's checks and of ours, one sentence each.
        broken_by: For each image the component that broke it, or 'clean', or None; see `pointwise_worst_case`.
        runs: Counts and cost of each component, in order.
    """
    robust: Tensor
    clean: Tensor
    x_adv: Tensor
    components: tuple[str, ...]
    warnings: tuple[str, ...]
    broken_by: tuple[str | None, ...] = ()
    runs: tuple[ComponentRun, ...] = ()

    def not_broken_by(self) -> dict[str, Tensor]:
        """For each component a mask (N,) bool: it did not break the image. It attacks only images robust before it."""
        return {
            name: torch.tensor([by != name for by in self.broken_by], dtype=torch.bool) for name in self.components}

    def save(self, path: str | os.PathLike, y: Tensor) -> None:
        """Write the images with their labels y (N,) as an archive that `timm_paf.data` reads; replaces a file.

        It has `image` (N, C, H, W) float32, `label` (N,) int64 and `broken_by` (N,) text, '' for robust images.
        """
        with whole_file(path) as file:
            np.savez(
                file, image=self.x_adv.numpy(), label=y.cpu().numpy(),
                broken_by=np.array([name or '' for name in self.broken_by]))


def pointwise_worst_case(clean: Tensor, attacks: Mapping[str, Tensor]) -> tuple[Tensor, tuple[str | None, ...]]:
    """Images that are robust to every attack.

    Args:
        clean: (N,) bool, classified correctly before any attack.
        attacks: Masks by name, (N,) bool: classified correctly under the attack.

    Returns:
        (N,) bool, robust to all; and for each image 'clean', the first attack that broke it, or None.

    Raises:
        ValueError: If the masks do not have the same shape or are not bool.
    """
    robust = clean.cpu().clone()
    broken_by: list[str | None] = [None if correct else 'clean' for correct in robust.tolist()]
    for name, correct in attacks.items():
        if correct.dtype != torch.bool or correct.shape != clean.shape:
            raise ValueError(
                f'the mask of {name} is {correct.dtype} of shape {tuple(correct.shape)}; expected torch.bool of shape '
                f'{tuple(clean.shape)}, one value per image.')
        for index in (robust & ~correct.cpu()).nonzero().flatten().tolist():
            broken_by[index] = name
        robust &= correct.cpu()
    return robust, tuple(broken_by)


def write_verdicts(path: str | os.PathLike, y: Tensor, correct: Mapping[str, Tensor], **columns: tuple) -> None:
    """Write a CSV with one row per image: its number, its label, and 1 or 0 for correct under each attack.

    Args:
        path: File to write as a whole or not at all; an existing file is replaced.
        y: Labels (N,).
        correct: Masks (N,) bool by column name.
        columns: More columns by name, N values each; None becomes an empty field.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['image', 'label', *correct, *columns])
    writer.writerows(zip(
        range(len(y)), y.tolist(), *(mask.int().tolist() for mask in correct.values()), *columns.values(), strict=True))
    with whole_file(path) as file:
        file.write(text.getvalue().encode())
