"""The losses of adversarial training as functions of logits, in float32 or better."""
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_paf.attacks import LOSSES

__all__ = ['boosted_cross_entropy', 'class_of', 'divergence', 'mart_loss', 'trades_loss', 'wide']


def wide(logits: Tensor) -> Tensor:
    """Logits in float32, or float64 if they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def class_of(target: Tensor) -> Tensor:
    """The likeliest class of each label: of probabilities (B, K) their argmax, of classes (B,) themselves."""
    return target if target.ndim == 1 else target.argmax(1)


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(p_clean || p_adversarial) of each image.

    Args:
        clean: Logits (B, K) of the images.
        adversarial: Logits (B, K) of their attacked versions.

    Returns:
        Values (B,) >= 0 up to rounding, in nats. Gradients flow into both.
    """
    return LOSSES['kl'](adversarial, clean)


def boosted_cross_entropy(logits: Tensor, target: Tensor, *, smoothing: float = 0.) -> Tensor:
    """BCE of MART: -log p_y - log(1 - max_{k != y} p_k), a cross-entropy with a margin to the best wrong class.

    The second logarithm is that of the sum of the other classes' probabilities, so that it is finite where p_k rounds
    to 1 (the authors' code adds 1e-4 there instead).

    Args:
        logits: (B, K), at least two classes.
        target: Classes (B,), int64, or probabilities (B, K): these enter the first term whole, and the second with the
            likeliest class as y.
        smoothing: Label smoothing of the first term.

    Returns:
        Values (B,).

    Source: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR 2020.
    """
    logits = wide(logits)
    y = class_of(target)
    entropy = F.cross_entropy(logits, target, reduction='none', label_smoothing=smoothing)
    log_p = logits.log_softmax(1)
    wrong = log_p.scatter(1, y[:, None], float('-inf')).argmax(1)
    return entropy - log_p.scatter(1, wrong[:, None], float('-inf')).logsumexp(1)


def trades_loss(
        clean: Tensor,
        adversarial: Tensor,
        target: Tensor,
        *,
        beta: float,
        criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Tensor:
    """TRADES: CE(p_clean, target) + beta KL(p_clean || p_adversarial), the mean over images.

    Args:
        clean: Logits (B, K) of the images.
        adversarial: Logits (B, K) of their attacked versions.
        target: Classes (B,), int64, or probabilities (B, K).
        beta: Weight of the divergence (1/lambda in the paper).
        criterion: The first term, of (logits, target).

    Returns:
        A scalar.

    Source: Zhang et al., arXiv 1901.08573.
    """
    return criterion(wide(clean), target) + beta * divergence(clean, adversarial).mean()


def mart_loss(clean: Tensor, adversarial: Tensor, target: Tensor, *, beta: float, smoothing: float = 0.) -> Tensor:
    """MART: BCE(p_adversarial, target) + beta KL(p_clean || p_adversarial) (1 - p_clean,y), the mean over images.

    Args:
        clean: Logits (B, K) of the images.
        adversarial: Logits (B, K) of their attacked versions.
        target: Classes (B,), int64, or probabilities (B, K), whose likeliest class is y.
        beta: Weight of the divergence (lambda in the paper).
        smoothing: Label smoothing in BCE.

    Returns:
        A scalar.

    Source: Wang et al., ICLR 2020; BCE is `boosted_cross_entropy`.
    """
    p_y = wide(clean).softmax(1).gather(1, class_of(target)[:, None]).squeeze(1)
    weighted = divergence(clean, adversarial) * (1 - p_y)
    return (boosted_cross_entropy(adversarial, target, smoothing=smoothing) + beta * weighted).mean()
