"""MART as a timm task."""
import torch
from torch import Tensor, nn

from timm_paf.tasks.adversarial import AdversarialTrainingTask, BatchLoss
from timm_paf.tasks.losses import mart_loss

__all__ = ['MARTTask']


class MARTTask(AdversarialTrainingTask):
    """MART (Wang et al., ICLR 2020): a margin on attacked images, and more weight for what is misclassified clean.

    Images and attacked images go through the model as one batch, as in `TRADESTask`. The published attack climbs the
    cross-entropy, `PGD(loss='ce', …)`.

    Args:
        model: As `AdversarialTrainingTask`.
        attack: As `AdversarialTrainingTask`.
        options: `mart_beta` weighs the divergence; `smoothing` is of the first term of the margin loss.
        criterion: None; the loss has no part that could be exchanged.
        **kwargs: As `AdversarialTrainingTask`.

    Raises:
        ValueError: If a criterion is given.
    """

    def __init__(self, model, attack, *, options=None, criterion=None, **kwargs) -> None:
        if criterion is not None:
            raise ValueError('MART has a loss of its own and takes no criterion; smoothing is an option of the task.')
        super().__init__(model, attack, options=options, **kwargs)

    def loss_of(self, model: nn.Module, input: Tensor, x_adv: Tensor, target: Tensor) -> BatchLoss:
        clean, adversarial = model(torch.cat([input, x_adv])).chunk(2)
        loss = mart_loss(
            clean, adversarial, target, beta=self.options.mart_beta, smoothing=self.options.smoothing)
        return BatchLoss(loss, adversarial, clean)
