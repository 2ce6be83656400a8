"""Adversarial training as a timm task."""
from collections.abc import Callable
from typing import Any, Optional, Union

import torch
from timm.layers import use_reentrant_ckpt
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from ..activations import paf_parameters, shared_activations

__all__ = ['AdversarialTrainingTask', 'learnable_betas']

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def learnable_betas(model: nn.Module) -> list[nn.Parameter]:
    """The learnable beta parameters of a model, each once."""
    return [p for name, p in paf_parameters(model).items() if name.rsplit('.', 1)[-1] == 'beta']


class AdversarialTrainingTask(ClassificationTask):
    """Train on the images that an attack makes of a batch (Madry et al., arXiv 1706.06083).

    The attack runs on the bare model, outside DistributedDataParallel, in whatever BatchNorm mode it documents (PGD:
    eval); the loss is the criterion on its images with the model in the mode that it was found in.

    For PSSiLU the published recipe adds 10 |beta| to the loss and clips the gradient of beta to norm 0.01 (Dai et al.,
    arXiv 2110.05626). Both apply to each learnable beta, and to nothing else: a model without one is trained as if they
    were absent. Clipping has to see the gradient that the optimizer uses, after unscaling and averaging over
    processes, so the task is told the optimizer: `task.attach_optimizer(optimizer)`.

    Args:
        model: Network for images in [0, 1].
        attack: Called as attack(model, x, y); returns images like x.
        beta_penalty: Weight of the sum of |beta|; 0 for none.
        beta_grad_clip: Largest norm of beta's gradient; None for no clipping.
        criterion: Loss of (logits, target); cross-entropy if None.
        **kwargs: As `timm.task.ClassificationTask`.

    Raises:
        ValueError: If beta_penalty is negative or beta_grad_clip is not positive.
    """

    def __init__(
            self,
            model: nn.Module,
            attack: Attack,
            *,
            beta_penalty: float = 10.,
            beta_grad_clip: Optional[float] = 0.01,
            criterion: Optional[Union[nn.Module, Callable]] = None,
            **kwargs: Any,
    ) -> None:
        if not beta_penalty >= 0:
            raise ValueError(f'beta_penalty = {beta_penalty}: expected a number >= 0.')
        if beta_grad_clip is not None and not beta_grad_clip > 0:
            raise ValueError(f'beta_grad_clip = {beta_grad_clip}: expected a number > 0, or None for no clipping.')
        super().__init__(model, nn.CrossEntropyLoss() if criterion is None else criterion, **kwargs)
        self.attack = attack
        self.beta_penalty = beta_penalty
        self.beta_grad_clip = beta_grad_clip

    @property
    def betas(self) -> list[nn.Parameter]:
        """The learnable beta parameters of the model; looked up each time, since wrapping may replace parameters."""
        return learnable_betas(self.trainable_module)

    def prepare_distributed(self, device_ids: Optional[list] = None, **ddp_kwargs: Any) -> 'AdversarialTrainingTask':
        """As `timm.task.ClassificationTask`.

        Raises:
            ValueError: If the model shares an activation and recomputes its blocks by reentrant checkpointing. Each
                block would then report the gradient of the one activation by itself, and DistributedDataParallel takes
                one report a step.
        """
        model = self.trainable_module
        shared = any(list(module.parameters()) for module in shared_activations(model).values())
        checkpointing = any(getattr(module, 'grad_checkpointing', False) for module in model.modules())
        if shared and checkpointing and use_reentrant_ckpt():
            raise ValueError(
                'a shared activation cannot be trained under DistributedDataParallel with reentrant gradient '
                'checkpointing; switch to the other kind with timm.layers.set_reentrant_ckpt(False), or turn gradient '
                'checkpointing off.')
        return super().prepare_distributed(device_ids, **ddp_kwargs)

    def attach_optimizer(self, optimizer: torch.optim.Optimizer):
        """Clip beta's gradient just before every step of this optimizer.

        Args:
            optimizer: The optimizer that updates the model.

        Returns:
            A handle whose `remove()` ends the clipping.
        """
        return optimizer.register_step_pre_hook(lambda *_: self.clip_beta_gradients())

    def clip_beta_gradients(self) -> None:
        """Scale the gradient of each beta down to norm `beta_grad_clip` where it is larger."""
        if self.beta_grad_clip is None:
            return
        for beta in self.betas:
            torch.nn.utils.clip_grad_norm_([beta], self.beta_grad_clip)

    def penalty(self) -> Tensor:
        """beta_penalty times the sum of |beta|; a scalar, 0 without a learnable beta."""
        total = torch.zeros((), device=self.device)
        if self.beta_penalty:
            for beta in self.betas:
                total = total + beta.abs().sum().to(self.device)
        return self.beta_penalty * total

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Attack a batch and compute the loss on the result.

        Of soft labels the attack is given the likeliest class. Climbing the loss of a smoothed label would raise the
        probability of the true class wherever that is above the label's share: no attack at all.

        Args:
            input: Images (B, C, H, W) in [0, 1].
            target: Labels (B,), int64, or probabilities (B, num_classes) if the criterion takes them.

        Returns:
            'loss', a scalar; 'output', the logits (B, num_classes) on the attacked images; 'x_adv', those images;
            'penalty', the part of the loss that is not the criterion's.
        """
        y = target if target.ndim == 1 else target.argmax(1)
        x_adv = self.attack(unwrap_model(self.trainable_module), input, y)
        output = self.trainable_module(x_adv)
        penalty = self.penalty()
        return {
            'loss': self.criterion(output, target) + penalty,
            'output': output,
            'x_adv': x_adv,
            'penalty': penalty.detach(),
        }
