"""The checks behind `check_trust`: each questions a `Probe` and gives a row."""
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from timm_paf.attacks import LOSSES
from timm_paf.evaluation._probe import Probe
from timm_paf.evaluation.report import Accuracy

__all__ = [
    'TrustCheck', 'autocast', 'black_box', 'deterministic', 'gradients', 'large_eps', 'more_steps', 'random_noise',
    'training_report',
]

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


def _row(name: str, warn: bool, finding: str, *, good: str, bad: str) -> TrustCheck:
    return TrustCheck(name=name, status='warn' if warn else 'pass', finding=finding, meaning=bad if warn else good)


def deterministic(probe: Probe) -> TrustCheck:
    """Two passes over the same images."""
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


def gradients(probe: Probe) -> TrustCheck:
    """Gradients that are zero, not finite, or not there."""
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


def more_steps(probe: Probe) -> TrustCheck:
    """Loss and success of PGD as its steps grow."""
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
    margin = LOSSES['margin']
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


def random_noise(probe: Probe) -> TrustCheck:
    """PGD against guessing."""
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


def large_eps(probe: Probe) -> TrustCheck:
    """PGD with any image allowed."""
    size = probe.x[0].numel()
    eps = {'linf': 1., 'l2': size ** 0.5, 'l1': float(size)}[probe.threat.norm]
    left = probe.standing(probe.pgd(LARGE_STEPS, eps=eps))
    return _row(
        'unbounded attack', int(left.sum()) > 0.01 * len(probe),
        f'{probe.threat.norm} eps {eps:g}, PGD-{LARGE_STEPS}: {int(left.sum())} of {len(probe)} images standing.',
        good='With any image allowed, every image is fooled.',
        bad='An attacker who may put any image in place of another must win; that this one does not shows that the '
            'attack fails, not that the model is robust.')


def black_box(probe: Probe, n_square: int) -> TrustCheck:
    """Square on images that PGD and APGD leave standing."""
    left = probe.standing(probe.pgd(STEPS[-1])) & probe.standing(probe.pgd(STEPS[-1], loss='margin'))
    survivors = int(left.sum())
    chosen = left.nonzero().flatten()[:n_square]
    if not survivors:
        return TrustCheck(
            name='black box', status='pass', finding='gradient attacks leave no image standing.',
            meaning='There is nothing left for an attack without gradients.')
    stronger = chosen
    if probe.gradients is not None and bool(probe.gradients.isfinite().all()):
        stronger = probe.autoattack(chosen, ('apgd-ce', 'apgd-t'))
    probe.square_images = len(chosen)
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


def autocast(probe: Probe) -> TrustCheck:
    """Verdicts in float32 and under autocast."""
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


def training_report(now: Accuracy | None, trained: Accuracy | None) -> TrustCheck:
    """Clean accuracy now and as training reported it."""
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
