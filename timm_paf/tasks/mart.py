"""MART: its loss as a function of logits, and the training task.

Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR 2020.
"""
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timm_paf.attacks.losses import kl_divergence
from timm_paf.tasks.adversarial import AdversarialTrainingTask, Attack, BatchLoss, likeliest_class, widen

__all__ = ['MARTTask', 'boosted_cross_entropy', 'mart_loss']


def boosted_cross_entropy(logits: Tensor, target: Tensor, *, smoothing: float = 0.) -> Tensor:
    r"""BCE of MART, values (B,): -log p_y - log(1 - max_{k != y} p_k), a cross-entropy plus a margin.

    .. math:: \mathrm{BCE}(p, y) = -\log p_y - \log\big(1 - \max_{k\ne y} p_k\big)

    The second term is finite where p_k rounds to 1; the authors' code adds 1e-4 there instead.

    Args:
        logits: (B, K), at least two classes.
        target: Classes (B,), int64, or probabilities (B, K): the first term uses them all, the second their likeliest
            class as y.
        smoothing: Label smoothing of the first term.
    """
    logits = widen(logits)
    entropy = F.cross_entropy(logits, target, reduction='none', label_smoothing=smoothing)
    log_p = logits.log_softmax(1)
    wrong = log_p.scatter(1, likeliest_class(target)[:, None], float('-inf')).argmax(1)
    return entropy - log_p.scatter(1, wrong[:, None], float('-inf')).logsumexp(1)


def mart_loss(clean: Tensor, adversarial: Tensor, target: Tensor, *, beta: float, smoothing: float = 0.) -> Tensor:
    r"""MART: BCE(p_adversarial, target) + beta KL(p_clean || p_adversarial) (1 - p_clean,y), the mean over images.

    .. math::
        \frac1B\sum_i \mathrm{BCE}\big(p(x_i'), y_i\big)
        + \beta\,\mathrm{KL}\big(p(x_i)\,\Vert\,p(x_i')\big)\,\big(1 - p_{y_i}(x_i)\big)

    Args:
        clean: Logits (B, K) of the images.
        adversarial: Logits (B, K) of the attacked images.
        target: Classes (B,), int64, or probabilities (B, K), whose likeliest class is y.
        beta: Weight of the KL divergence (lambda in the paper).
        smoothing: Label smoothing in BCE.
    """
    p_y = widen(clean).softmax(1).gather(1, likeliest_class(target)[:, None]).squeeze(1)
    weighted = kl_divergence(adversarial, clean) * (1 - p_y)
    return (boosted_cross_entropy(adversarial, target, smoothing=smoothing) + beta * weighted).mean()


class MARTTask(AdversarialTrainingTask):
    """MART (Wang et al., ICLR 2020): a margin loss on attacked images, with more weight on misclassified clean images.

    Images and attacked images pass through the model as one batch, as in `TRADESTask`. The attack of the paper
    maximises the cross-entropy, `PGD(loss='ce', …)`. Arguments as `AdversarialTrainingTask`, without a criterion.
    """

    def __init__(self, model: nn.Module, attack: Attack | None, **kwargs: Any) -> None:
        if kwargs.get('criterion') is not None:
            raise ValueError('MART has its own loss and takes no criterion; label smoothing is TaskOptions.smoothing.')
        super().__init__(model, attack, **kwargs)

    def loss_of(self, model: nn.Module, input: Tensor, x_adv: Tensor, target: Tensor) -> BatchLoss:
        clean, adversarial = model(torch.cat([input, x_adv])).chunk(2)
        loss = mart_loss(clean, adversarial, target, beta=self.options.mart_beta, smoothing=self.options.smoothing)
        return BatchLoss(loss, adversarial, clean)
