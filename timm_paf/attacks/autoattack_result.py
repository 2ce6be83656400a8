"""Results of AutoAttack for each image."""
import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timm_paf._files import whole_file, write_text

__all__ = ['AutoAttackResult', 'ComponentRun', 'pointwise_worst_case', 'write_verdicts']


@dataclass(frozen=True, kw_only=True)
class ComponentRun:
    """Counts and cost of one component of AutoAttack."""
    name: str
    attacked: int  # images that it attacked
    broken: int  # images that it broke
    seconds: float  # summed over processes and over interrupted and resumed runs
    forwards: int  # images passed through the model
    backwards: int  # images for which a gradient was computed


@dataclass(frozen=True)
class AutoAttackResult:
    """Robust images, adversarial images, and what each component did; tensors are on the CPU."""
    robust: Tensor  # (N,) bool, classified correctly, clean and after every component
    clean: Tensor  # (N,) bool, classified correctly before any attack
    x_adv: Tensor  # (N, …) float32, the adversarial image where one was found, else the original
    components: tuple[str, ...]  # names of the components that were run, in order
    warnings: tuple[str, ...]  # of the package's checks and of ours, one sentence each
    broken_by: tuple[str | None, ...] = ()  # per image, as `pointwise_worst_case`
    runs: tuple[ComponentRun, ...] = ()  # counts and cost of each component, in order

    def not_broken_by(self) -> dict[str, Tensor]:
        """For each component a mask (N,) bool: it did not break the image. It attacks only images robust before it."""
        return {
            name: torch.tensor([by != name for by in self.broken_by], dtype=torch.bool) for name in self.components}

    def save(self, path: str | os.PathLike, y: Tensor, *, class_names: Sequence[str] = ()) -> None:
        """Write the images with their labels y (N,) as an archive that `timm_paf.data` reads; replaces a file.

        It has `image` (N, C, H, W) float32, `label` (N,) int64 and `broken_by` (N,) text, '' for robust images; and the
        `class_names` (K,), if they are given.
        """
        names: dict[str, Any] = {'class_names': np.array(class_names)} if class_names else {}
        with whole_file(path) as file:
            np.savez(
                file, image=self.x_adv.numpy(), label=y.cpu().numpy(),
                broken_by=np.array([name or '' for name in self.broken_by]), **names)


def pointwise_worst_case(clean: Tensor, attacks: Mapping[str, Tensor]) -> tuple[Tensor, tuple[str | None, ...]]:
    """Combine masks (N,) bool of correct images: before any attack, and by attack.

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

    `correct` has masks (N,) bool by column name, and `columns` more columns, N values each; None is an empty field.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['image', 'label', *correct, *columns])
    writer.writerows(zip(
        range(len(y)), y.tolist(), *(mask.int().tolist() for mask in correct.values()), *columns.values(), strict=True))
    write_text(text.getvalue(), path)
