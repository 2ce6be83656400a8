"""Robust accuracy as a function of eps, and accuracy per class."""
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf.attacks import PGD, check_images, parse_eps
from timm_paf.attacks.threat import Eps
from timm_paf.evaluation.accuracy import Accuracy
from timm_paf.evaluation.correct import correct_mask, model_device

__all__ = ['ClassAccuracy', 'CurvePoint', 'RobustnessCurve', 'accuracy_by_class', 'curve_radius', 'robustness_curve']


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One radius of a `RobustnessCurve`.

    Args:
        eps: Radius as the user wrote it.
        eps_value: Radius as a number; 0 for no attack.
        alone: Accuracy under the attack at this radius; None with `early_stop`.
        worst: Accuracy under the attacks at this radius and at all smaller ones.
    """
    eps: str
    eps_value: float
    alone: Accuracy | None
    worst: Accuracy


@dataclass(frozen=True, kw_only=True)
class RobustnessCurve:
    """Result of `robustness_curve`.

    Args:
        points: One per radius, from the smallest to the largest.
        attack: Name and strength of the attack.
        norm: Norm of the ball.
        steps: Number of gradient steps.
        seed: Seed of the attack.
        seconds: Duration.
    """
    points: tuple[CurvePoint, ...]
    attack: str
    norm: str
    steps: int
    seed: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        points = [
            {'eps': p.eps, 'eps_value': p.eps_value, 'alone': p.alone and p.alone.to_dict(), 'worst': p.worst.to_dict()}
            for p in self.points]
        return {**asdict(self), 'points': points}


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """Accuracy on the images of one class.

    Args:
        label: The class.
        clean: Accuracy without an attack.
        robust: Accuracy under all attacks that were run on an image.
    """
    label: int
    clean: Accuracy
    robust: Accuracy

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {'label': self.label, 'clean': self.clean.to_dict(), 'robust': self.robust.to_dict()}


def robustness_curve(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Sequence[Eps],
        norm: str = 'linf',
        steps: int = 20,
        early_stop: bool = False,
        batch_size: int = 250,
        seed: int = 0,
        device: torch.device | None = None,
        rank: int = 0,
        world_size: int = 1,
) -> RobustnessCurve:
    """Accuracy under PGD at several radii.

    The random start of PGD depends on the seed and on the index of the image, not on its batch.

    Args:
        model: Maps images in [0, 1] to logits; it is not changed.
        x: Images (N, C, H, W) in [0, 1].
        y: Labels (N,), int64.
        eps: Radii that `curve_radius` accepts, in any order.
        norm: Norm of the balls.
        steps: Number of steps of PGD; each has length 2.5 eps / steps.
        early_stop: Do not attack images again that were broken at a smaller radius. This is faster, but gives only
            `worst`, not `alone`.
        batch_size: Images per batch.
        seed: Seed of the attack.
        device: Device of the model; that of its first parameter if None.
        rank: Number of this process, as in `evaluate_robustness`.
        world_size: Number of processes; each needs all images.

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
    robust = torch.ones(len(x), dtype=torch.bool)
    points = []
    with Processes.from_rank(rank, world_size, device=device).patient() as processes:
        processes.run_together(lambda: check_images(model, x, y, device=device))
        for radius, text in radii:
            attack = PGD(eps=radius, steps=steps, norm=norm, seed=seed) if radius else None
            chosen = robust.nonzero().flatten() if early_stop else torch.arange(len(x))
            alone = torch.zeros(len(x), dtype=torch.bool)
            if len(chosen):
                alone[chosen] = correct_mask(
                    model, x[chosen.to(x.device)], y[chosen.to(y.device)], attack=attack, batch_size=batch_size,
                    device=device, seeds=chosen, processes=processes)
            robust &= alone
            points.append(CurvePoint(
                eps=text, eps_value=radius, alone=None if early_stop else Accuracy.of(alone),
                worst=Accuracy.of(robust)))
    return RobustnessCurve(
        points=tuple(points), attack=f'PGD-{steps}', norm=norm, steps=steps, seed=seed,
        seconds=time.monotonic() - started)


def accuracy_by_class(y: Tensor, *, clean: Tensor, robust: Tensor) -> tuple[ClassAccuracy, ...]:
    """Accuracy per class; classes without images are left out.

    Args:
        y: Labels (N,), int64.
        clean: Correct mask without an attack, (N,) bool.
        robust: Correct mask under the attacks, (N,) bool.
    """
    y, clean, robust = y.cpu(), clean.cpu(), robust.cpu()
    return tuple(
        ClassAccuracy(label=int(label), clean=Accuracy.of(clean[y == label]), robust=Accuracy.of(robust[y == label]))
        for label in y.unique())


def curve_radius(eps: Eps, *, norm: str = 'linf', label: str = 'eps') -> float:
    """A radius as a number; accepts what `parse_eps` accepts, and 0 for no attack.

    Args:
        eps: Text such as '8/255', or a number.
        norm: Norm of the ball.
        label: Name of the value in an error.

    Raises:
        ValueError: As `parse_eps`, except for 0.
    """
    try:
        if Fraction(eps) == 0:
            return 0.
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        pass  # parse_eps reports the error
    return parse_eps(eps, norm=norm, label=label)
