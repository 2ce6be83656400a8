"""Signs of a false robustness number, looked for on a few hundred images.

What is looked for follows Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security" (arXiv
1802.00420), and Carlini et al., "On Evaluating Adversarial Robustness" (arXiv 1902.06705).
"""
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from timm_paf.attacks import ThreatModel, check_images
from timm_paf.evaluation import _signs
from timm_paf.evaluation._probe import Probe
from timm_paf.evaluation._signs import TrustCheck
from timm_paf.evaluation.report import Accuracy

__all__ = ['TrustCheck', 'TrustReport', 'check_trust']


@dataclass(frozen=True, kw_only=True)
class TrustReport:
    """What `check_trust` found.

    Args:
        checks: One for every sign.
        images: How many images were looked at.
        norm: Norm of the ball.
        eps: Radius as it was written.
        seed: Seed of attacks and noise.
        forwards: Passes of an image through the model, those of Square not included.
        backwards: Passes of an image forward and backward.
        square_images: Images that APGD and Square were given: each up to 1000 passes forward and backward more, and
            5000 forward.
        seconds: Time it took.
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
        """What the checks cost, in a sentence."""
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
    """Look for signs that gradients are masked or that a measurement cannot be repeated.

    An image costs about 100 passes forward and backward and 25 forward. For each of a few images come up to 1000 passes
    forward and backward (APGD) and 5000 forward (Square).

    Args:
        model: Maps images in [0, 1] to logits; left as found.
        x: Images (N, C, H, W) in [0, 1].
        y: Labels (N,), int64.
        threat: Norm and radius.
        n_trust: The first so many images are looked at.
        n_square: APGD and then Square are given so many of those that PGD leaves standing.
        clean: Clean accuracy as measured now, on all images.
        trained_clean: Clean accuracy on the same images as the training run reported it.
        batch_size: Images a batch.
        seed: Seed of attacks and noise.
        device: Where the model is; its first parameter's if None.
        progress: Called as progress(check, checks done, checks in all).

    Returns:
        A row for each sign. A row that warns does not prove that the number is wrong, and none that it is right.

    Raises:
        ValueError: As `timm_paf.attacks.check_images`, or if n_trust or n_square is below 1.
    """
    for name, value in (('n_trust', n_trust), ('n_square', n_square)):
        if value < 1:
            raise ValueError(f'{name} = {value}: expected 1 or more.')
    started = time.monotonic()
    device = device or next((p.device for p in model.parameters()), x.device)
    check_images(model, x[:n_trust], y[:n_trust], device=device)
    probe = Probe(model, x[:n_trust], y[:n_trust], threat=threat, batch_size=batch_size, seed=seed, device=device)
    todo: tuple[Callable[[], TrustCheck], ...] = (
        lambda: _signs.deterministic(probe), lambda: _signs.gradients(probe), lambda: _signs.more_steps(probe),
        lambda: _signs.random_noise(probe), lambda: _signs.large_eps(probe), lambda: _signs.black_box(probe, n_square),
        lambda: _signs.autocast(probe), lambda: _signs.training_report(clean, trained_clean))
    checks: list[TrustCheck] = []
    for look in todo:
        if progress is not None:
            progress('trust checks', len(checks), len(todo))
        checks.append(look())
    return TrustReport(
        checks=tuple(checks), images=len(probe), norm=threat.norm, eps=str(threat.eps), seed=seed,
        forwards=probe.forwards, backwards=probe.backwards, square_images=probe.square_images,
        seconds=time.monotonic() - started)
