"""The trust checks of `check_trust`: each runs a `Probe` and returns a `TrustCheck`. To add one, add it to CHECKS."""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from timm_paf.attacks import LOSSES
from timm_paf.evaluation.accuracy import Accuracy
from timm_paf.evaluation.trust_probe import Probe

__all__ = ['CHECKS', 'TrustCheck']

STEPS = (1, 5, 20)
LARGE_STEPS = 50
NOISE_DRAWS = 10


@dataclass(frozen=True, kw_only=True)
class TrustCheck:
    """Result of one trust check.

    Args:
        name: Name of the check.
        status: 'pass', 'warn', or 'skip' if the check cannot be run.
        finding: What the check found, with counts.
        meaning: What the finding says about the robust accuracy.
    """
    name: str
    status: str
    finding: str
    meaning: str


def _result(name: str, warn: bool, finding: str, *, good: str, bad: str) -> TrustCheck:
    return TrustCheck(name=name, status='warn' if warn else 'pass', finding=finding, meaning=bad if warn else good)


def _skip(name: str, finding: str, meaning: str) -> TrustCheck:
    return TrustCheck(name=name, status='skip', finding=finding, meaning=meaning)


def _nothing_to_attack(name: str) -> TrustCheck:
    return _skip(name, 'no image is classified correctly.', 'There is nothing to attack.')


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
        bad='The model is random, so the gradient that an attack follows is different in the next pass. Measure with '
            "AutoAttack 'rand' (EOT), and average the accuracy over several passes.")


def gradients(probe: Probe) -> TrustCheck:
    """Look for gradients that are zero, not finite, or missing."""
    name, good = 'gradients', 'The gradients give attacks a direction.'
    if probe.gradients is None:
        return _result(
            name, True, 'no gradient reaches the images.', good=good,
            bad='The model contains an operation without a derivative: gradient attacks have no effect, and only '
                'black-box attacks measure its robustness. Replace the operation by a smooth one during the attack '
                '(BPDA).')
    total = int(probe.correct.sum())
    if not total:
        return _nothing_to_attack(name)
    flat = probe.gradients.flatten(1)
    broken = int((~flat.isfinite().all(1) & probe.correct).sum())
    zero = int(((flat == 0).all(1) & probe.correct).sum())
    return _result(
        name, broken > 0 or zero > 0.01 * total,
        f'{_share(zero, total)} are zero, {_share(broken, total)} are NaN or infinite.', good=good,
        bad='Gradient attacks cannot move an image whose gradient is zero or not a number. Causes: the softmax '
            'saturates, or an operation has slope zero. Look for rounding, sign functions or a large factor on the '
            'logits; attack with a margin loss as well.')


def more_steps(probe: Probe) -> TrustCheck:
    """Compare loss and success of PGD with few and with many steps."""
    name, chosen = 'more steps', probe.correct
    total = int(chosen.sum())
    if not total:
        return _nothing_to_attack(name)
    means, robust = [], []
    for steps in STEPS:
        logits = probe.logits(probe.pgd(steps))
        means.append(float(functional.cross_entropy(logits, probe.y, reduction='none')[chosen].mean()))
        robust.append(int((chosen & (logits.argmax(1) == probe.y)).sum()))
    # the margin, since the cross-entropy of a confidently classified image is 0 before and after
    margin = LOSSES['margin']
    raised = int((chosen & (margin(logits, probe.y) > margin(probe.clean_logits, probe.y))).sum())
    weaker = not all(means[-1] >= 0.95 * mean for mean in means) or robust[-1] > min(robust) + max(1, 0.01 * total)
    shown = ', '.join(
        f'PGD-{steps}: loss {mean:.3g}, {left} robust' for steps, mean, left in zip(STEPS, means, robust, strict=True))
    return _result(
        name, weaker or raised < 0.95 * total,
        f'of {total} images, {shown}; the margin of the true class shrank on {raised}.',
        good='More steps make the attack stronger, as they should.',
        bad='An attack with more steps is no stronger than one with fewer: its gradients do not point to adversarial '
            'images.')


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
        f'{by_pgd}; noise alone breaks {noise_only}.',
        good='PGD is stronger than random noise.',
        bad='Random noise of the same radius breaks images that PGD does not: the gradients mislead PGD, and the '
            'robust accuracy is too high.')


def unbounded_attack(probe: Probe) -> TrustCheck:
    """Run PGD with a radius that allows every image."""
    size = probe.x[0].numel()
    eps = {'linf': 1., 'l2': size ** 0.5, 'l1': float(size)}[probe.threat.norm]
    left = int(probe.robust(probe.pgd(LARGE_STEPS, eps=eps)).sum())
    return _result(
        'unbounded attack', left > 0.01 * len(probe),
        f'PGD-{LARGE_STEPS} at {probe.threat.norm} eps {eps:g}: {left} of {len(probe)} images are robust.',
        good='PGD breaks every image if any change is allowed.',
        bad='An attack that may replace an image by any other must succeed. This one does not, so the attack fails: '
            'the model need not be robust.')


def black_box(probe: Probe) -> TrustCheck:
    """Run APGD, then Square, on images that are robust to PGD."""
    name = 'black box'
    robust = probe.robust(probe.pgd(STEPS[-1])) & probe.robust(probe.pgd(STEPS[-1], loss='margin'))
    survivors = int(robust.sum())
    if not survivors:
        return TrustCheck(
            name=name, status='pass', finding='no image is robust to PGD.',
            meaning='There is nothing left for an attack without gradients.')
    chosen = left = robust.nonzero().flatten()[:probe.n_square]
    if probe.gradients is not None and bool(probe.gradients.isfinite().all()):
        left = probe.autoattack(chosen, ('apgd-ce', 'apgd-t'))
    probe.square_images = len(chosen)
    broken = len(left) - len(probe.autoattack(left, ('square',)))
    share = survivors / len(probe)
    least = 100 * share * Accuracy(broken, len(chosen)).interval()[0]  # percentage points, over all images
    return _result(
        name, least > 2,
        f'{survivors} of {len(probe)} images are robust to PGD-{STEPS[-1]}; of {len(chosen)} of them, APGD breaks '
        f'{len(chosen) - len(left)} and Square {broken} more: {100 * share * broken / len(chosen):.1f} percentage '
        f'points of accuracy, at least {least:.1f} with 97.5 % confidence.',
        good='An attack without gradients breaks no more images than chance explains.',
        bad='An attack without gradients breaks images that gradient attacks do not: the gradients are masked, and an '
            'accuracy under gradient attacks alone is too high.')


def mixed_precision(probe: Probe) -> TrustCheck:
    """Compare predictions in float32 and under bfloat16 autocast."""
    name, advice = 'mixed precision', 'Measure in float32, as this report does.'
    if probe.random:
        return _skip(name, 'predictions of a random model differ anyway.', advice)
    images, labels = torch.cat([probe.x, probe.pgd(STEPS[-1])]), probe.y.repeat(2)
    try:
        low = probe.logits(images, autocast=torch.bfloat16).argmax(1) == labels
    except RuntimeError as error:  # an operation without an autocast form
        return _skip(name, f'the model does not run under autocast ({str(error).splitlines()[0][:100]}).', advice)
    high = probe.logits(images).argmax(1) == labels
    changed = int((low != high).sum())
    return _result(
        name, changed > max(2, 0.02 * len(images)),
        f'{changed} of {len(images)} images, clean and under PGD-{STEPS[-1]}, are correct in only one of float32 and '
        'bfloat16 autocast.',
        good='Precision hardly affects predictions; this report uses float32.',
        bad='Predictions depend on the precision: accuracies measured under autocast, elsewhere or in training, are '
            'not comparable with this report, which uses float32.')


def training_report(probe: Probe) -> TrustCheck:
    """Compare the clean accuracy with the one that the training run reported."""
    name, now, trained = 'training report', probe.clean, probe.trained_clean
    if now is None or trained is None:
        return _skip(
            name, 'the training run reported no clean accuracy on these images.',
            'It is not checked that weights and images are those of the training run.')
    if now.total == trained.total:  # the same images: only rounding on another device may differ
        wrong = abs(now.correct - trained.correct) > max(1, 0.002 * now.total)
    else:
        (low, high), (least, most) = now.interval(), trained.interval()
        wrong = high < least or most < low
    return _result(
        name, wrong,
        f'clean accuracy is {now.correct} / {now.total} now, {trained.correct} / {trained.total} in the report of the '
        'training run.',
        good='Weights, images and preprocessing agree with the training run.',
        bad='Clean accuracy differs from the training run: check the weights (EMA or raw?), the images and the '
            'preprocessing.')


def _share(count: int, total: int) -> str:
    return f'{count} of {total} ({100 * count / total:.1f} %)'


CHECKS: tuple[Callable[[Probe], TrustCheck], ...] = (
    deterministic,  # first: `mixed_precision` needs its result
    gradients, more_steps, random_noise, unbounded_attack, black_box, mixed_precision, training_report)
