"""TRADES: its loss as a function of logits, and the training task. A variant of TRADES starts from here."""
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timm_paf.attacks.losses import kl_divergence
from timm_paf.tasks.adversarial import AdversarialTrainingTask, BatchLoss, widen

__all__ = ['TRADESTask', 'trades_loss']


def trades_loss(
        clean: Tensor, adversarial: Tensor, target: Tensor, *, beta: float,
        criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Tensor:
    r"""TRADES: CE(p_clean, target) + beta KL(p_clean || p_adversarial), the mean over images.

    .. math:: \frac1B\sum_i -\log p_{y_i}(x_i) + \beta\,\mathrm{KL}\big(p(x_i)\,\Vert\,p(x_i')\big)

    Args:
        clean: Logits (B, K) of the images.
        adversarial: Logits (B, K) of the attacked images.
        target: Classes (B,), int64, or probabilities (B, K).
        beta: Weight of the KL divergence (1/lambda in the paper).
        criterion: The first term, a function of (logits, target).

    Returns:
        A scalar. Gradients flow into both logits.

    Source: Zhang et al., arXiv 1901.08573.
    """
    return criterion(widen(clean), target) + beta * kl_divergence(adversarial, clean).mean()


class TRADESTask(AdversarialTrainingTask):
    """TRADES (Zhang et al., arXiv 1901.08573): cross-entropy on the images, and a KL divergence to the attacked ones.

    Images and attacked images pass through the model as one batch, so batch normalisation sees both together. The
    attack of the paper maximises the KL divergence from the clean prediction, `PGD(loss='kl', …)`. Arguments as
    `AdversarialTrainingTask`; `criterion` replaces the cross-entropy.
    """

    def loss_of(self, model: nn.Module, input: Tensor, x_adv: Tensor, target: Tensor) -> BatchLoss:
        clean, adversarial = model(torch.cat([input, x_adv])).chunk(2)
        loss = trades_loss(clean, adversarial, target, beta=self.options.trades_beta, criterion=self.criterion)
        return BatchLoss(loss, adversarial, clean)
