"""Robust accuracy as a function of eps, and accuracy per class."""
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf.attacks import PGD, check_images, parse_eps
from timm_paf.attacks.threat import Eps
from timm_paf.evaluation.accuracy import Accuracy, Part
from timm_paf.evaluation.correct import correct_mask, model_device

__all__ = [
    'ClassAccuracy', 'CurvePoint', 'RobustnessCurve', 'accuracy_by_class', 'chance_warning', 'curve_radius',
    'robustness_curve',
]


@dataclass(frozen=True, kw_only=True)
class CurvePoint(Part):
    """One radius of a `RobustnessCurve`."""
    eps: str  #: Radius as the user wrote it.
    eps_value: float  #: Radius as a number; 0 for no attack.
    alone: Accuracy  #: Accuracy under the attack at this radius.
    worst: Accuracy  #: Accuracy under the attacks at this radius and at all smaller ones.


@dataclass(frozen=True, kw_only=True)
class RobustnessCurve(Part):
    """Result of `robustness_curve`, with norm, gradient steps and seed of the attack."""
    points: tuple[CurvePoint, ...]  #: One per radius, from the smallest to the largest.
    attack: str  #: Name and strength of the attack.
    norm: str
    steps: int
    seed: int
    seconds: float  #: Duration.


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy(Part):
    """Accuracy on the images of one class."""
    label: int  #: The class.
    clean: Accuracy  #: Accuracy without an attack.
    robust: Accuracy  #: Accuracy under all attacks that were run on an image.


def chance_warning(clean: Tensor, y: Tensor) -> str:
    """A sentence if a clean accuracy is no better than guessing the most frequent class, else ''.

    Args:
        clean: (N,) bool, classified correctly.
        y: Labels (N,).
    """
    found, counts = Accuracy.of(clean), y.bincount()
    if len(counts.nonzero()) < 2 or found.interval()[0] > float(counts.max()) / len(y):
        return ''
    return (
        f'the clean accuracy, {found.percent:.1f} % ({found.correct} of {found.total} images), is at chance: one class '
        f'for all images would give {100 * int(counts.max()) / len(y):.1f} %. Do not use these accuracies. Check the '
        'input normalisation, and whether the weights are for this model and for these classes.')


def robustness_curve(
        model: nn.Module, x: Tensor, y: Tensor, *, eps: Sequence[Eps], norm: str = 'linf', steps: int = 20,
        batch_size: int = 250, seed: int = 0, device: torch.device | None = None, rank: int = 0, world_size: int = 1,
        capture: str = 'auto',
) -> RobustnessCurve:
    """Accuracy under PGD at several radii.

    Other arguments are those of `evaluate_robustness`.

    Args:
        eps: Radii that `curve_radius` accepts, in any order.
        norm: Norm of the balls.
        steps: Number of steps of PGD; each has length 2.5 eps / steps.

    Returns:
        One point per radius. The ball of a larger radius contains that of a smaller one, yet an attack can miss at the
        larger radius what it found at the smaller one: `alone` shows this, `worst` corrects it.

    Raises:
        ValueError: As `timm_paf.attacks.check_images` and `curve_radius`, or if a radius is given twice.
    """
    started = time.monotonic()
    device = device or model_device(model, x.device)
    radii = sorted((curve_radius(value, norm=norm), str(value)) for value in eps)
    if not radii or len({radius for radius, _ in radii}) < len(radii):
        raise ValueError(f'eps = {", ".join(map(str, eps)) or "nothing"}: expected one or more different radii.')
    robust, points = torch.ones(len(x), dtype=torch.bool), []
    with Processes.from_rank(rank, world_size, device=device).patient() as processes:
        processes.run_together(lambda: check_images(model, x, y, device=device, dtype=x.dtype))
        for radius, text in radii:
            attack = PGD(eps=radius, steps=steps, norm=norm, seed=seed, capture=capture) if radius else None
            alone = correct_mask(
                model, x, y, attack=attack, batch_size=batch_size, device=device, seeds=torch.arange(len(x)),
                processes=processes)
            robust &= alone
            points.append(CurvePoint(eps=text, eps_value=radius, alone=Accuracy.of(alone), worst=Accuracy.of(robust)))
    return RobustnessCurve(
        points=tuple(points), attack=f'PGD-{steps}', norm=norm, steps=steps, seed=seed,
        seconds=time.monotonic() - started)


def accuracy_by_class(y: Tensor, *, clean: Tensor, robust: Tensor) -> tuple[ClassAccuracy, ...]:
    """Accuracy per class that occurs among the labels (N,), from correct masks (N,) without and under attacks."""
    y, clean, robust = y.cpu(), clean.cpu(), robust.cpu()
    return tuple(
        ClassAccuracy(label=int(label), clean=Accuracy.of(clean[y == label]), robust=Accuracy.of(robust[y == label]))
        for label in y.unique())


def curve_radius(eps: Eps, *, norm: str = 'linf', label: str = 'eps') -> float:
    """A radius as a number: 0 for no attack, else that of `parse_eps`, with its arguments and errors."""
    with contextlib.suppress(ValueError, TypeError, ZeroDivisionError, OverflowError):  # parse_eps reports them
        if Fraction(eps) == 0:
            return 0.
    return parse_eps(eps, norm=norm, label=label)
