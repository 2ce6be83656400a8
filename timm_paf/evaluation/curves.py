"""Robust accuracy over the radius, and by class."""
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
from timm_paf.evaluation._verdicts import verdicts
from timm_paf.evaluation.report import Accuracy

__all__ = ['ClassAccuracy', 'CurvePoint', 'RobustnessCurve', 'accuracy_by_class', 'curve_radius', 'robustness_curve']


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One radius of a `RobustnessCurve`.

    Args:
        eps: Radius as it was written.
        eps_value: Radius as a number; 0 for no attack.
        alone: Under the attack at this radius; None where images that fell before were left out.
        worst: Under the attacks at this radius and at all smaller ones of the list.
    """
    eps: str
    eps_value: float
    alone: Accuracy | None
    worst: Accuracy


@dataclass(frozen=True, kw_only=True)
class RobustnessCurve:
    """What `robustness_curve` measured.

    Args:
        points: By rising radius.
        attack: Name and strength of the attack.
        norm: Norm of the ball.
        steps: Gradient steps.
        seed: Seed of the attack.
        seconds: Time it took.
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
        clean: Without an attack.
        robust: Under all attacks that the image was given.
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
    """Accuracy under PGD at several radii; each image starts where its place among the images says.

    Args:
        model: Maps images in [0, 1] to logits; left as found.
        x: Images (N, C, H, W) in [0, 1].
        y: Labels (N,), int64.
        eps: Radii as `curve_radius` reads them, in any order.
        norm: Norm of the balls.
        steps: Steps of PGD, each 2.5 eps / steps long.
        early_stop: Leave out images that fell at a smaller radius: faster, and only `worst` can be told.
        batch_size: Images a batch.
        seed: Seed of the attack.
        device: Where the model is; its first parameter's if None.
        rank: Number of this process among those that share the work, as `evaluate_robustness` has it.
        world_size: How many they are; each has all images.

    Returns:
        A point for each radius. An attack at a larger radius is weaker now and then than one at a smaller, although
        every image of the smaller ball is in the larger; `alone` shows that, `worst` does not.

    Raises:
        ValueError: As `timm_paf.attacks.check_images` and `curve_radius`, or if a radius is given twice.
    """
    started = time.monotonic()
    device = device or next((p.device for p in model.parameters()), x.device)
    radii = sorted((curve_radius(value, norm=norm), str(value)) for value in eps)
    if not radii or len({radius for radius, _ in radii}) < len(radii):
        raise ValueError(f'eps = {", ".join(map(str, eps)) or "nothing"}: expected one or more radii, each once.')
    standing = torch.ones(len(x), dtype=torch.bool)
    points = []
    with Processes.from_rank(rank, world_size, device=device).patient() as ranks:
        ranks.run_together(lambda: check_images(model, x, y, device=device))
        for radius, text in radii:
            attack = PGD(eps=radius, steps=steps, norm=norm, seed=seed) if radius else None
            chosen = standing.nonzero().flatten() if early_stop else torch.arange(len(x))
            alone = torch.zeros(len(x), dtype=torch.bool)
            if len(chosen):
                alone[chosen] = verdicts(
                    model, x[chosen.to(x.device)], y[chosen.to(y.device)], attack=attack, batch_size=batch_size,
                    device=device, seeds=chosen, ranks=ranks)
            standing &= alone
            points.append(CurvePoint(
                eps=text, eps_value=radius, alone=None if early_stop else Accuracy.of(alone),
                worst=Accuracy.of(standing)))
    return RobustnessCurve(
        points=tuple(points), attack=f'PGD-{steps}', norm=norm, steps=steps, seed=seed,
        seconds=time.monotonic() - started)


def accuracy_by_class(y: Tensor, *, clean: Tensor, robust: Tensor) -> tuple[ClassAccuracy, ...]:
    """Verdicts to counts for each class that has an image.

    Args:
        y: Labels (N,), int64.
        clean: (N,) bool: classified correctly without an attack.
        robust: (N,) bool: classified correctly under the attacks as well.
    """
    y, clean, robust = y.cpu(), clean.cpu(), robust.cpu()
    return tuple(
        ClassAccuracy(label=int(label), clean=Accuracy.of(clean[y == label]), robust=Accuracy.of(robust[y == label]))
        for label in y.unique())


def curve_radius(eps: Eps, *, norm: str = 'linf', label: str = 'eps') -> float:
    """A radius as `parse_eps` reads it, or 0 for no attack.

    Args:
        eps: Text or number.
        norm: Norm of the ball.
        label: What to call it in an error.

    Raises:
        ValueError: As `parse_eps`, except for 0.
    """
    try:
        if Fraction(eps) == 0:
            return 0.
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        pass  # parse_eps says what is wrong
    return parse_eps(eps, norm=norm, label=label)
