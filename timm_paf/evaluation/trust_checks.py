"""Trust checks: signs that a measured robust accuracy is too high, on a few hundred images.

The checks follow Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security" (arXiv 1802.00420),
and Carlini et al., "On Evaluating Adversarial Robustness" (arXiv 1902.06705). To add one, write a function and list it
in CHECKS.
"""
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from timm_paf.attacks import LOSSES, ThreatModel, check_images
from timm_paf.attacks.balls import BALLS
from timm_paf.evaluation.accuracy import Accuracy, Part
from timm_paf.evaluation.correct import model_device
from timm_paf.evaluation.trust_probe import Probe

__all__ = ['TrustCheck', 'TrustReport', 'check_trust']

STEPS = (1, 5, 20)
LARGE_STEPS = 50
NOISE_DRAWS = 10
NOTHING_TO_ATTACK = ('skip', 'no image is classified correctly.', 'There is nothing to attack.')


@dataclass(frozen=True)
class TrustCheck(Part):
    """Result of one trust check."""
    name: str
    status: str  #: 'pass', 'warn', or 'skip' if the check cannot be run.
    finding: str  #: What the check found, with counts.
    meaning: str  #: What the finding says about the robust accuracy.


@dataclass(frozen=True, kw_only=True)
class TrustReport(Part):
    """Result of `check_trust`, with norm, eps as the user wrote it, and seed of the attacks."""
    checks: tuple[TrustCheck, ...]
    images: int  #: Number of images.
    norm: str
    eps: str
    seed: int
    forwards: int  #: Number of images passed forward, without those of Square.
    backwards: int  #: Number of images passed forward and backward, without those of APGD.
    square_images: int  #: Number of images attacked by APGD and Square.
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


def check_trust(
        model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, n_trust: int = 256, n_square: int = 32,
        clean: Accuracy | None = None, trained_clean: Accuracy | None = None, batch_size: int = 250, seed: int = 0,
        device: torch.device | None = None, progress: Callable[[str, int, int], None] | None = None,
        capture: str = 'auto',
) -> TrustReport:
    """Check for masked gradients and for measurements that cannot be repeated.

    An image costs about 100 passes forward and backward and 25 forward; each of `n_square` images up to 1000 more
    forward and backward (APGD) and 5000 forward (Square).

    Other arguments are those of `evaluate_robustness`.

    Args:
        n_trust: Number of images to check, from the first.
        n_square: Largest number of images for APGD and Square, among those that are robust to PGD.
        clean: Clean accuracy as measured now, on all images.
        trained_clean: Clean accuracy on the same images in the report of the training run.
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
    check_images(model, x, y, device=device, dtype=torch.float32)
    probe = Probe(
        model, x, y, threat=threat, batch_size=batch_size, seed=seed, device=device, n_square=n_square, clean=clean,
        trained_clean=trained_clean, capture=capture)
    checks: list[TrustCheck] = []
    for check in CHECKS:
        if progress is not None:
            progress('trust checks', len(checks), len(CHECKS))
        checks.append(check(probe))
    counts = {name: getattr(probe, name) for name in ('forwards', 'backwards', 'square_images')}
    return TrustReport(
        checks=tuple(checks), images=len(probe), norm=threat.norm, eps=str(threat.eps), seed=seed,
        seconds=time.monotonic() - started, **counts)


def _result(name: str, warn: bool, finding: str, *, good: str, bad: str) -> TrustCheck:
    return TrustCheck(name, 'warn' if warn else 'pass', finding, bad if warn else good)


def deterministic(probe: Probe) -> TrustCheck:
    """Compare the logits of two passes over the same images."""
    again, first = probe.logits(probe.x), probe.clean_logits
    # kernels may sum in a different order; intended randomness is far larger
    apart = (again - first).abs().amax(1) > 1e-3 * first.abs().amax(1).clamp_min(1e-3)
    changed = int((again.argmax(1) != first.argmax(1)).sum())
    probe.random = bool(apart.any())
    return _result(
        'deterministic logits', probe.random,
        f'logits of two passes differ on {int(apart.sum())} of {len(probe)} images, predictions on {changed}.',
        good='The same image gets the same logits each time.',
        bad="The model is random: measure with AutoAttack 'rand' (EOT), and average the accuracy over several passes.")


def gradients(probe: Probe) -> TrustCheck:
    """Look for gradients that are zero, not finite, or missing."""
    if probe.gradients is None:
        return TrustCheck(
            'gradients', 'warn', 'no gradient reaches the images.',
            'An operation of the model has no derivative; replace it by a smooth one during the attack (BPDA).')
    if not (total := int(probe.correct.sum())):
        return TrustCheck('gradients', *NOTHING_TO_ATTACK)
    flat = probe.gradients.flatten(1)
    zero, broken = (int((mask & probe.correct).sum()) for mask in ((flat == 0).all(1), ~flat.isfinite().all(1)))
    shares = [f'{count} of {total} ({100 * count / total:.1f} %)' for count in (zero, broken)]
    return _result(
        'gradients', broken > 0 or zero > 0.01 * total, '{} are zero, {} are NaN or infinite.'.format(*shares),
        good='The gradients give attacks a direction.',
        bad='Gradient attacks cannot move these images. Look for rounding, sign functions or a large factor on the '
            'logits (saturated softmax); attack with a margin loss as well.')


def more_steps(probe: Probe) -> TrustCheck:
    """Compare loss and success of PGD with few and with many steps."""
    chosen = probe.correct
    if not (total := int(chosen.sum())):
        return TrustCheck('more steps', *NOTHING_TO_ATTACK)
    means, robust = [], []
    for steps in STEPS:
        logits = probe.logits(probe.pgd(steps))
        means.append(float(functional.cross_entropy(logits[chosen], probe.y[chosen])))
        robust.append(int((chosen & (logits.argmax(1) == probe.y)).sum()))
    # the margin, since the cross-entropy of a confidently classified image is 0 before and after
    margin = LOSSES['margin']
    raised = int((chosen & (margin(logits, probe.y) > margin(probe.clean_logits, probe.y))).sum())
    weaker = not all(means[-1] >= 0.95 * mean for mean in means) or robust[-1] > min(robust) + max(1, 0.01 * total)
    found = zip(STEPS, means, robust, strict=True)
    shown = ', '.join(f'PGD-{steps}: loss {mean:.3g}, {left} robust' for steps, mean, left in found)
    return _result(
        'more steps', weaker or raised < 0.95 * total,
        f'of {total} images, {shown}; the margin of the true class shrank on {raised}.',
        good='More steps make the attack stronger, as they should.',
        bad='More steps do not make the attack stronger: its gradients do not point to adversarial images.')


def random_noise(probe: Probe) -> TrustCheck:
    """Compare PGD with random noise of the same radius."""
    generator = torch.Generator(probe.device).manual_seed(probe.seed + 1)
    to_noise = probe.correct.clone()
    for _ in range(NOISE_DRAWS):
        to_noise &= probe.robust(probe.noise(generator))
    to_pgd = probe.robust(probe.pgd(STEPS[-1]))
    by_noise, by_pgd = (int((probe.correct & ~robust).sum()) for robust in (to_noise, to_pgd))
    noise_only = int((to_pgd & ~to_noise).sum())
    return _result(
        'random noise', by_noise > by_pgd or noise_only > max(1, 0.02 * len(probe)),
        f'the worst of {NOISE_DRAWS} random directions of length eps breaks {by_noise} images, PGD-{STEPS[-1]} breaks '
        f'{by_pgd}; noise breaks {noise_only} that PGD does not.',
        good='PGD is stronger than random noise.',
        bad='Random noise breaks images that PGD does not: the gradients mislead PGD; robust accuracy is too high.')


def unbounded_attack(probe: Probe) -> TrustCheck:
    """Run PGD with a radius that allows every image."""
    norm = probe.threat.norm
    eps = BALLS[norm].largest(probe.x[0].numel())
    left = int(probe.robust(probe.pgd(LARGE_STEPS, eps=eps)).sum())
    return _result(
        'unbounded attack', left > 0.01 * len(probe),
        f'PGD-{LARGE_STEPS} at {norm} eps {eps:g}: {left} of {len(probe)} images are robust.',
        good='PGD breaks every image if any change is allowed.',
        bad='An attack that may replace an image by any other must succeed. This one does not, so the attack fails.')


def black_box(probe: Probe) -> TrustCheck:
    """Run APGD, then Square, on images that are robust to PGD."""
    robust = probe.robust(probe.pgd(STEPS[-1])) & probe.robust(probe.pgd(STEPS[-1], loss='margin'))
    if not (survivors := int(robust.sum())):
        return TrustCheck('black box', 'pass', 'no image is robust to PGD.', 'There is nothing left to attack.')
    chosen = left = robust.nonzero().flatten()[:probe.n_square]
    if probe.gradients is not None and bool(probe.gradients.isfinite().all()):
        left = probe.autoattack(chosen, ('apgd-ce', 'apgd-t'))
    probe.square_images = len(chosen)
    try:
        broken = len(left) - len(probe.autoattack(left, ('square',)))
    except ValueError as error:  # images of this size in this norm
        return TrustCheck('black box', 'skip', f'{error}', 'No attack without gradients was tried.')
    points = 100 * survivors / len(probe)  # percentage points of accuracy
    least = points * Accuracy(broken, len(chosen)).interval()[0]
    return _result(
        'black box', least > 2,
        f'{survivors} of {len(probe)} images are robust to PGD-{STEPS[-1]}; of {len(chosen)} of them, APGD breaks '
        f'{len(chosen) - len(left)} and Square {broken} more: {points * broken / len(chosen):.1f} percentage points of '
        f'accuracy, at least {least:.1f} with 97.5 % confidence.',
        good='An attack without gradients breaks no more images than chance explains.',
        bad='An attack without gradients breaks images that gradient attacks do not: the gradients are masked.')


def mixed_precision(probe: Probe) -> TrustCheck:
    """Compare predictions in float32 and under bfloat16 autocast."""
    skipped = partial(TrustCheck, 'mixed precision', 'skip', meaning='Measure in float32, as this report does.')
    if probe.random:
        return skipped('predictions of a random model differ in every pass.')
    images, labels = torch.cat([probe.x, probe.pgd(STEPS[-1])]), probe.y.repeat(2)
    try:
        low = probe.logits(images, autocast=torch.bfloat16).argmax(1) == labels
    except RuntimeError as error:  # an operation without an autocast form
        return skipped(f'the model does not run under autocast ({str(error).splitlines()[0][:100]}).')
    changed = int((low != (probe.logits(images).argmax(1) == labels)).sum())
    return _result(
        'mixed precision', changed > max(2, 0.02 * len(images)),
        f'{changed} of {len(images)} images, clean and under PGD-{STEPS[-1]}, are correct in only one of the two.',
        good='Precision hardly affects predictions; this report uses float32.',
        bad='Predictions depend on the precision: accuracies under autocast are not comparable with this report.')


def training_report(probe: Probe) -> TrustCheck:
    """Compare the clean accuracy with the one that the training run reported."""
    now, trained = probe.clean, probe.trained_clean
    if now is None or trained is None:
        return TrustCheck(
            'training report', 'skip', 'the training run reported no clean accuracy on these images.',
            'It is not checked that weights and images are those of the training run.')
    if now.total == trained.total:  # the same images: only rounding on another device may differ
        wrong = abs(now.correct - trained.correct) > max(1, 0.002 * now.total)
    else:
        (low, high), (least, most) = now.interval(), trained.interval()
        wrong = high < least or most < low
    return _result(
        'training report', wrong,
        f'clean accuracy: {now.correct} / {now.total} now, {trained.correct} / {trained.total} in the training run.',
        good='Weights, images and preprocessing agree with the training run.',
        bad='Clean accuracy differs from the training run: check weights (EMA or raw?), images and preprocessing.')


CHECKS: tuple[Callable[[Probe], TrustCheck], ...] = (
    deterministic,  # first: `mixed_precision` needs its result
    gradients, more_steps, random_noise, unbounded_attack, black_box, mixed_precision, training_report)
