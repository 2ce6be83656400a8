"""TRADES as a timm task."""
import torch
from torch import Tensor, nn

from timm_paf.tasks.adversarial import AdversarialTrainingTask, BatchLoss
from timm_paf.tasks.losses import trades_loss

__all__ = ['TRADESTask']


class TRADESTask(AdversarialTrainingTask):
    """TRADES (Zhang et al., arXiv 1901.08573): cross-entropy on the images, and their divergence from the attacked.

    Images and attacked images go through the model as one batch: batch normalisation sees both together and its running
    statistics move once, and DistributedDataParallel sees one pass. The published attack climbs the divergence from the
    clean prediction, `PGD(loss='kl', …)`, which computes that prediction once.

    Args:
        model: As `AdversarialTrainingTask`.
        attack: As `AdversarialTrainingTask`.
        options: `trades_beta` weighs the divergence; `smoothing` is of the cross-entropy.
        criterion: Loss of (logits, target) in place of the cross-entropy.
        **kwargs: As `AdversarialTrainingTask`.
    """

    def loss_of(self, model: nn.Module, input: Tensor, x_adv: Tensor, target: Tensor) -> BatchLoss:
        clean, adversarial = model(torch.cat([input, x_adv])).chunk(2)
        loss = trades_loss(
            clean, adversarial, target, beta=self.options.trades_beta, criterion=self.criterion)
        return BatchLoss(loss, adversarial, clean)
