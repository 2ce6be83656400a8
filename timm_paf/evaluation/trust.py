"""Signs of a false robustness number, looked for on a few hundred images.

What is looked for follows Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security" (arXiv
1802.00420), and Carlini et al., "On Evaluating Adversarial Robustness" (arXiv 1902.06705).
"""
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..attacks import ThreatModel, check_images
from ._probe import Probe, margin
from .report import Accuracy

__all__ = ['TrustCheck', 'TrustReport', 'check_trust']

STEPS = (1, 5, 20)
LARGE_STEPS = 50
NOISE_DRAWS = 10


@dataclass(frozen=True, kw_only=True)
class TrustCheck:
    """One row of a `TrustReport`.

    Args:
        name: What was looked at.
        status: 'pass', 'warn', or 'skip' where it could not be looked at.
        finding: What was found, with counts.
        meaning: What it says about the robust accuracy.
    """
    name: str
    status: str
    finding: str
    meaning: str


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
        clean: Optional[Accuracy] = None,
        trained_clean: Optional[Accuracy] = None,
        batch_size: int = 250,
        seed: int = 0,
        device: Optional[torch.device] = None,
        progress: Optional[Callable[[str, int, int], None]] = None,
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
        A row for each sign. A row that warns does not prove that the number is wrong; a robust model gives none.

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
    tried: list[int] = []

    def black_box(probe: Probe) -> TrustCheck:
        return _black_box(probe, n_square, tried)

    def training(probe: Probe) -> TrustCheck:
        return _training_report(clean, trained_clean)

    checks: list[TrustCheck] = []
    todo = (_deterministic, _gradients, _more_steps, _random_noise, _large_eps, black_box, _autocast, training)
    for look in todo:
        if progress is not None:
            progress('trust checks', len(checks), len(todo))
        checks.append(look(probe))
    return TrustReport(
        checks=tuple(checks), images=len(probe), norm=threat.norm, eps=str(threat.eps), seed=seed,
        forwards=probe.forwards, backwards=probe.backwards, square_images=sum(tried),
        seconds=time.monotonic() - started)


def _row(name: str, warn: bool, finding: str, *, good: str, bad: str) -> TrustCheck:
    return TrustCheck(name=name, status='warn' if warn else 'pass', finding=finding, meaning=bad if warn else good)


def _deterministic(probe: Probe) -> TrustCheck:
    again = probe.logits(probe.x)
    first = probe.clean_logits
    # kernels may add in another order; what is random on purpose differs by far more
    apart = (again - first).abs().amax(1) > 1e-3 * first.abs().amax(1).clamp_min(1e-3)
    changed = int((again.argmax(1) != first.argmax(1)).sum())
    probe.random = bool(apart.any())
    return _row(
        'deterministic logits', probe.random,
        f'two passes differ on {int(apart.sum())} of {len(probe)} images; {changed} verdicts change.',
        good='The same image gets the same logits each time.',
        bad='The model is random: attacks follow a gradient that is gone at the next pass. Measure with AutoAttack '
            "'rand' (EOT), and average the accuracy over several passes.")


def _gradients(probe: Probe) -> TrustCheck:
    name = 'gradients'
    good = 'The loss tells attacks which way to go.'
    if probe.gradients is None:
        return _row(
            name, True, 'no gradient reaches the images.', good=good,
            bad='A step of the model has no derivative: gradient attacks do nothing, and only black-box ones say '
                'something. Replace the step by a smooth one while attacking (BPDA).')
    flat = probe.gradients.flatten(1)
    chosen = probe.correct
    total = int(chosen.sum())
    if not total:
        return TrustCheck(
            name=name, status='skip', finding='no image is classified correctly.',
            meaning='There is nothing to attack.')
    broken = ~flat.isfinite().all(1) & chosen
    zero = (flat == 0).all(1) & chosen
    return _row(
        name, int(broken.sum()) > 0 or int(zero.sum()) > 0.01 * total,
        f'{_share(zero, total)} zero, {_share(broken, total)} NaN or infinite.', good=good,
        bad='Where the gradient of the cross-entropy vanishes or is not a number, gradient attacks stand still: the '
            'softmax saturates, or a step of the model has no slope. Look for rounding, signs or a large scale of the '
            'logits; attack with a margin loss as well.')


def _more_steps(probe: Probe) -> TrustCheck:
    chosen = probe.correct
    total = int(chosen.sum())
    if not total:
        return TrustCheck(
            name='more steps', status='skip', finding='no image is classified correctly.',
            meaning='There is nothing to attack.')
    losses, standing = [], []
    for steps in STEPS:
        logits = probe.logits(probe.pgd(steps))
        losses.append(functional.cross_entropy(logits, probe.y, reduction='none'))
        standing.append(int((chosen & (logits.argmax(1) == probe.y)).sum()))
    # the margin, since the loss of an image that is classified with confidence is 0 before and after
    raised = int((chosen & (margin(logits, probe.y) > margin(probe.clean_logits, probe.y))).sum())
    means = [float(loss[chosen].mean()) for loss in losses]
    slack = max(1, 0.01 * total)
    wrong = (
        raised < 0.95 * total or not all(means[-1] >= 0.95 * mean for mean in means)
        or standing[-1] > min(standing) + slack)
    shown = ', '.join(
        f'PGD-{steps}: loss {mean:.3g}, {left} standing' for steps, mean, left in
        zip(STEPS, means, standing, strict=True))
    return _row(
        'more steps', wrong, f'of {total} images, {shown}; the true class lost ground on {raised}.',
        good='More steps make the attack stronger, as they must.',
        bad='An attack with more steps is no stronger than one with fewer: its gradients lead nowhere.')


def _random_noise(probe: Probe) -> TrustCheck:
    generator = torch.Generator(probe.device).manual_seed(probe.seed + 1)
    standing = probe.correct.clone()
    for _ in range(NOISE_DRAWS):
        standing &= probe.standing(probe.noise(generator))
    pgd = probe.standing(probe.pgd(STEPS[-1]))
    by_noise, by_pgd = (int((probe.correct & ~left).sum()) for left in (standing, pgd))
    alone = int((pgd & ~standing).sum())
    return _row(
        'random noise', by_noise > by_pgd or alone > max(1, 0.02 * len(probe)),
        f'the worst of {NOISE_DRAWS} random directions of length eps fools the model on {by_noise} images, '
        f'PGD-{STEPS[-1]} on {by_pgd}; {alone} fall to noise alone.',
        good='Searching is better than guessing.',
        bad='Random noise of the same radius finds what PGD does not: PGD is misled, and the robust accuracy too high.')


def _large_eps(probe: Probe) -> TrustCheck:
    size = probe.x[0].numel()
    eps = {'linf': 1., 'l2': size ** 0.5, 'l1': float(size)}[probe.threat.norm]
    left = probe.standing(probe.pgd(LARGE_STEPS, eps=eps))
    return _row(
        'unbounded attack', int(left.sum()) > 0.01 * len(probe),
        f'{probe.threat.norm} eps {eps:g}, PGD-{LARGE_STEPS}: {int(left.sum())} of {len(probe)} images standing.',
        good='With any image allowed, every image is fooled.',
        bad='An attacker who may put any image in place of another must win; that this one does not shows that the '
            'attack fails, not that the model is robust.')


def _black_box(probe: Probe, n_square: int, tried: list[int]) -> TrustCheck:
    left = probe.standing(probe.pgd(STEPS[-1])) & probe.standing(probe.pgd(STEPS[-1], loss=margin))
    survivors = int(left.sum())
    chosen = left.nonzero().flatten()[:n_square]
    if not survivors:
        return TrustCheck(
            name='black box', status='pass', finding='gradient attacks leave no image standing.',
            meaning='There is nothing left for an attack without gradients.')
    stronger = chosen
    if probe.gradients is not None and bool(probe.gradients.isfinite().all()):
        stronger = probe.autoattack(chosen, ('apgd-ce', 'apgd-t'))
    tried.append(len(chosen))
    broken = len(stronger) - len(probe.autoattack(stronger, ('square',)))
    share = survivors / len(probe)
    least = 100 * share * Accuracy(broken, len(chosen)).interval()[0]  # points of accuracy, over all images
    return _row(
        'black box', least > 2,
        f'PGD-{STEPS[-1]} leaves {survivors} of {len(probe)} images; of {len(chosen)} of them APGD breaks '
        f'{len(chosen) - len(stronger)} and Square {broken} more: {100 * share * broken / len(chosen):.1f} points of '
        f'accuracy, at least {least:.1f} with 97.5 % confidence.',
        good='An attack that sees no gradients adds nothing beyond chance.',
        bad='An attack that sees no gradients breaks what those that do cannot: the gradients are masked, and an '
            'accuracy under gradient attacks alone is too high.')


def _autocast(probe: Probe) -> TrustCheck:
    name, dtype = 'mixed precision', torch.bfloat16
    if probe.random:
        return TrustCheck(
            name=name, status='skip', finding='the verdicts of a random model differ anyway.',
            meaning='Measure in float32, as the report does.')
    images = torch.cat([probe.x, probe.pgd(STEPS[-1])])
    labels = probe.y.repeat(2)
    try:
        low = probe.logits(images, autocast=dtype).argmax(1) == labels
    except RuntimeError as error:  # an operation without an autocast form
        reason = str(error).splitlines()[0][:100]
        return TrustCheck(
            name=name, status='skip', finding=f'the model does not run under autocast ({reason}).',
            meaning='Measure in float32, as the report does.')
    high = probe.logits(images).argmax(1) == labels
    changed = int((low != high).sum())
    return _row(
        name, changed > max(2, 0.02 * len(images)),
        f'{changed} of {len(images)} verdicts, on clean images and those of PGD-{STEPS[-1]}, differ between float32 '
        'and bfloat16 autocast.',
        good='Precision hardly matters for the verdicts; the numbers here are float32.',
        bad='Verdicts depend on the precision: numbers measured under autocast, elsewhere or in training, are not '
            'comparable with these, which are float32.')


def _training_report(now: Optional[Accuracy], trained: Optional[Accuracy]) -> TrustCheck:
    name = 'training report'
    if now is None or trained is None:
        return TrustCheck(
            name=name, status='skip', finding='no clean accuracy of the training run on these images is known.',
            meaning='Whether these are the weights and the images that were reported is not checked.')
    if now.total == trained.total:  # the same images: only rounding on another device may differ
        wrong = abs(now.correct - trained.correct) > max(1, 0.002 * now.total)
    else:
        (low, high), (least, most) = now.interval(), trained.interval()
        wrong = high < least or most < low
    return _row(
        name, wrong,
        f'clean accuracy {now.correct} / {now.total} now, {trained.correct} / {trained.total} reported by training.',
        good='These are the weights, the images and the preprocessing that were reported.',
        bad='Clean accuracy is not what training reported: other weights (averaged or raw?), images, or preprocessing.')


def _share(chosen: Tensor, total: int) -> str:
    return f'{int(chosen.sum())} of {total} ({100 * int(chosen.sum()) / total:.1f} %)'
