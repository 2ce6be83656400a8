"""Trust checks: signs that a measured robust accuracy is too high, on a few hundred images.

The checks follow Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security" (arXiv 1802.00420),
and Carlini et al., "On Evaluating Adversarial Robustness" (arXiv 1902.06705).
"""
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from timm_paf.attacks import ThreatModel, check_images
from timm_paf.evaluation.accuracy import Accuracy
from timm_paf.evaluation.correct import model_device
from timm_paf.evaluation.trust_checks import CHECKS, TrustCheck
from timm_paf.evaluation.trust_probe import Probe

__all__ = ['TrustCheck', 'TrustReport', 'check_trust']


@dataclass(frozen=True, kw_only=True)
class TrustReport:
    """Result of `check_trust`.

    Args:
        checks: One result per trust check.
        images: Number of images.
        norm: Norm of the ball.
        eps: Radius as the user wrote it.
        seed: Seed of attacks and noise.
        forwards: Number of images passed forward, without those of Square.
        backwards: Number of images passed forward and backward, without those of APGD.
        square_images: Number of images attacked by APGD (up to 1000 passes forward and backward each) and Square (up to
            5000 passes forward each).
        seconds: Duration.
    """
    checks: tuple[TrustCheck, ...]
    images: int
    norm: str
    eps: str
    seed: int
    forwards: int
    backwards: int
    square_images: int
    seconds: float

    @property
    def warnings(self) -> tuple[TrustCheck, ...]:
        """The checks that warn."""
        return tuple(check for check in self.checks if check.status == 'warn')

    @property
    def cost(self) -> str:
        """The cost of the checks, in a sentence."""
        square = f', and APGD and Square on {self.square_images} images' if self.square_images else ''
        return (
            f'{self.images} images, {self.backwards / self.images:.0f} forward and backward passes and '
            f'{self.forwards / self.images:.0f} forward passes each{square}; {self.seconds:.0f} s.')

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), 'checks': [asdict(check) for check in self.checks]}


def check_trust(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        threat: ThreatModel,
        n_trust: int = 256,
        n_square: int = 32,
        clean: Accuracy | None = None,
        trained_clean: Accuracy | None = None,
        batch_size: int = 250,
        seed: int = 0,
        device: torch.device | None = None,
        progress: Callable[[str, int, int], None] | None = None,
) -> TrustReport:
    """Check for masked gradients and for measurements that cannot be repeated.

    The cost per image is about 100 passes forward and backward and 25 forward; for `n_square` images, up to 1000 more
    forward and backward (APGD) and 5000 forward (Square).

    Args:
        model: Maps images in [0, 1] to logits; it is not changed.
        x: Images (N, C, H, W) in [0, 1].
        y: Labels (N,), int64.
        threat: Norm and radius.
        n_trust: Number of images to check, from the first.
        n_square: Largest number of images for APGD and Square, among those that are robust to PGD.
        clean: Clean accuracy as measured now, on all images.
        trained_clean: Clean accuracy on the same images in the report of the training run.
        batch_size: Images per batch.
        seed: Seed of attacks and noise.
        device: Device of the model; that of its first parameter if None.
        progress: Called as progress('trust checks', checks done, all checks).

    Returns:
        One result per check. A warning does not prove that the accuracy is wrong; no warning does not prove that it is
        right.

    Raises:
        ValueError: As `timm_paf.attacks.check_images`, or if n_trust or n_square is below 1.
    """
    for name, value in (('n_trust', n_trust), ('n_square', n_square)):
        if value < 1:
            raise ValueError(f'{name} = {value}: expected 1 or more.')
    started = time.monotonic()
    device = device or model_device(model, x.device)
    x, y = x[:n_trust], y[:n_trust]
    check_images(model, x, y, device=device)
    probe = Probe(
        model, x, y, threat=threat, batch_size=batch_size, seed=seed, device=device, n_square=n_square, clean=clean,
        trained_clean=trained_clean)
    checks: list[TrustCheck] = []
    for check in CHECKS:
        if progress is not None:
            progress('trust checks', len(checks), len(CHECKS))
        checks.append(check(probe))
    return TrustReport(
        checks=tuple(checks), images=len(probe), norm=threat.norm, eps=str(threat.eps), seed=seed,
        forwards=probe.forwards, backwards=probe.backwards, square_images=probe.square_images,
        seconds=time.monotonic() - started)
