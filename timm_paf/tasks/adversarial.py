"""Adversarial training as a timm task: the base class of all tasks here."""
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from timm.task import ClassificationTask
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from timm_paf.activations import (
    check_parameters,
    paf_modules,
    paf_parameters,
    project_parameters,
)
from timm_paf.attacks import PGD, PixelCheck
from timm_paf.tasks.options import TaskOptions
from timm_paf.tasks.perturbation import WeightPerturbation

__all__ = ['AdversarialTrainingTask', 'Attack', 'BatchLoss', 'learnable_betas', 'likeliest_class', 'widen']

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def learnable_betas(model: nn.Module) -> list[nn.Parameter]:
    """The learnable beta parameters of a model, each once."""
    return list(paf_parameters(model, 'beta').values())


def widen(logits: Tensor) -> Tensor:
    """Logits in float32; float64 logits stay float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def likeliest_class(target: Tensor) -> Tensor:
    """Classes (B,) unchanged; the argmax (B,) of probabilities (B, K)."""
    return target if target.ndim == 1 else target.argmax(1)


class BatchLoss(NamedTuple):
    """Loss and logits of a batch."""
    loss: Tensor  # scalar, without the penalty on beta
    output: Tensor  # logits (B, num_classes) of the attacked images, for the training accuracy
    clean: Tensor | None = None  # logits (B, num_classes) of the images, if the loss uses them


class AdversarialTrainingTask(ClassificationTask):
    """Train on attacked images (Madry et al., arXiv 1706.06083).

    The attack runs on the module inside DistributedDataParallel, in the BatchNorm mode that it documents. The loss is
    the criterion on the attacked images, in one pass through the wrapper, so that running statistics move once per
    step. Subclasses override `loss_of`.

    For PSSiLU the published recipe adds 10 |beta| to the loss and clips the gradient of beta to norm 0.01 (Dai et al.,
    arXiv 2110.05626). Both apply to each learnable beta only. The gradient of each learnable alpha is clipped in the
    same way, which the published recipe does not do: without it alpha can run away in the first updates. After each
    update, alpha and beta are projected into their range. Call `task.attach_optimizer(optimizer)`: clipping must see
    the gradient that the optimizer uses, after unscaling and averaging over processes.

    With gradient accumulation, weights are perturbed for each micro-batch by its own gradient.

    Args:
        model: Network for images in [0, 1].
        attack: Called as attack(model, x, y); returns images like x. None trains on the images themselves.
        options: Settings; the defaults if None. Settings of other losses have no effect.
        criterion: Loss of (logits, target); cross-entropy with `options.smoothing` if None.
        device: Device of the model; by default the device of its first parameter.
        **kwargs: As `timm.task.ClassificationTask`.

    Raises:
        ValueError: If smoothing is set together with a criterion, warm-up with an attack that has no `eps`, or alpha
            or beta of the model is outside its range in training.
    """

    def __init__(
            self, model: nn.Module, attack: Attack | None, *, options: TaskOptions | None = None,
            criterion: nn.Module | Callable | None = None, device: torch.device | None = None, **kwargs: Any,
    ) -> None:
        options = TaskOptions() if options is None else options
        if criterion is None:
            criterion = nn.CrossEntropyLoss(label_smoothing=options.smoothing)
        elif options.smoothing:
            raise ValueError(
                f'smoothing = {options.smoothing} together with a criterion: set the smoothing in the criterion.')
        if device is None:
            device = next((p.device for p in model.parameters()), torch.device('cpu'))
        check_parameters(model, beta_bound=options.beta_bound)
        super().__init__(model, criterion, device=device, **kwargs)
        self.attack = attack
        self.options = options
        self._check_pixels = PixelCheck()
        self._perturbation = WeightPerturbation(options.awp_gamma)
        self._update: int | None = None
        self._versions: list[int] | None = None
        self._full_strength: tuple[float, float | None] = (0., None)
        if options.eps_warmup_updates and attack is not None:
            eps = getattr(attack, 'eps', None)
            if not isinstance(eps, float):
                raise ValueError(
                    f'eps_warmup_updates = {options.eps_warmup_updates}: the attack {type(attack).__name__} has no '
                    'float `eps`; use PGD or FGSM, or 0 updates.')
            self._full_strength = eps, getattr(attack, 'step_size', None)

    @property
    def betas(self) -> list[nn.Parameter]:
        """The learnable beta parameters of the model; looked up each time, since wrapping may replace parameters."""
        return learnable_betas(self.trainable_module)

    def clipped_parameters(self) -> list[tuple[nn.Parameter, float]]:
        """Each learnable alpha and beta whose gradient is clipped on its own, with the largest norm."""
        limits = {'alpha': self.options.alpha_grad_clip, 'beta': self.options.beta_grad_clip}
        return [
            (parameter, limit) for name, limit in limits.items() if limit is not None
            for parameter in paf_parameters(self.trainable_module, name).values()]

    @property
    def bare_module(self) -> nn.Module:
        """The network inside DistributedDataParallel; compiled if `compile` was called."""
        module = self.trainable_module
        return module.module if isinstance(module, DistributedDataParallel) else module

    def begin_update(self, update: int) -> None:
        """Set the attack's strength during warm-up, and whether weights are perturbed.

        Call it before every update (not every micro-batch) with its number, from 0, if `eps_warmup_updates` or
        `awp_start_update` is set. In a warm-up of n updates, update k uses (k + 1)/n of the radius and step size.
        """
        if update < 0:
            raise ValueError(f'update = {update}: expected the number of the update in the run, from 0.')
        self._update = update
        if self.options.eps_warmup_updates and self.attack is not None:
            fraction = min(1., (update + 1) / self.options.eps_warmup_updates)
            (eps, step_size), attack = self._full_strength, cast(Any, self.attack)
            attack.eps = eps * fraction
            if step_size is not None:
                attack.step_size = step_size * fraction

    def attach_optimizer(self, optimizer: torch.optim.Optimizer) -> tuple[RemovableHandle, RemovableHandle]:
        """Clip gradients of alpha and beta before each step of the model's optimizer, and project both after it.

        The first handle ends the clipping, the second the projection.
        """
        def before(*_: Any) -> None:
            self._perturbation.restore()
            for parameter, limit in self.clipped_parameters():
                torch.nn.utils.clip_grad_norm_([parameter], limit)

        after = optimizer.register_step_post_hook(lambda *_: self.project())
        return optimizer.register_step_pre_hook(before), after

    def project(self) -> None:
        """Project alpha and beta into their range, as `timm_paf.activations.project_parameters`."""
        project_parameters(self.trainable_module, beta_bound=self.options.beta_bound)

    def _project_if_changed(self) -> None:
        """Project after an optimizer that is not attached, but not between two losses that share a backward pass."""
        parameters = paf_parameters(self.trainable_module).values()
        if [p._version for p in parameters] != self._versions:
            self.project()
            self._versions = [p._version for p in parameters]

    def penalty(self) -> Tensor:
        """beta_penalty times the sum of |beta|: a scalar, 0 without a learnable beta."""
        total = torch.zeros((), device=self.device)
        for _, module in paf_modules(self.trainable_module) if self.options.beta_penalty else ():
            if learnable_betas(module):
                total = total + module.beta.abs().sum().to(self.device)
        return self.options.beta_penalty * total

    def images(self, input: Tensor, target: Tensor) -> Tensor:
        """The attacked images of a batch, like input; detached."""
        return input if self.attack is None else self.attack(self.bare_module, input, likeliest_class(target))

    def loss_of(self, model: nn.Module, input: Tensor, x_adv: Tensor, target: Tensor) -> BatchLoss:
        """The loss of images and attacked images (B, C, H, W) without the penalty, in one pass through the model."""
        output = model(x_adv)
        return BatchLoss(self.criterion(widen(output), target), output)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Attack a batch and compute the loss.

        For soft labels, the attack gets the likeliest class: the loss of a smoothed label also rises with the
        probability of the true class.

        Args:
            input: Images (B, C, H, W) in [0, 1].
            target: Labels (B,), int64, or probabilities (B, num_classes) if the criterion supports them.

        Returns:
            'loss', a scalar, the only one with a graph; 'output', the logits (B, num_classes) of the attacked images;
            'output_clean', those of the images, if the loss uses them; 'x_adv'; 'penalty', the loss from |beta|.

        Raises:
            RuntimeError: If an option depends on the number of the update and `begin_update` was not called.
            ValueError: If images are not in [0, 1] (see `timm_paf.attacks.PixelCheck`).
        """
        if self.training:
            self._project_if_changed()
        perturbs = self._perturbs()
        if not isinstance(self.attack, PGD):  # which checks them itself
            self._check_pixels(input)
        x_adv = self.images(input, target)
        try:
            if perturbs:
                group = getattr(self.trainable_module, 'process_group', None)  # of DistributedDataParallel
                self._perturbation.perturb(
                    self.bare_module, lambda: self.loss_of(self.bare_module, input, x_adv, target).loss, group=group)
            batch, penalty = self.loss_of(self.trainable_module, input, x_adv, target), self.penalty()
            loss = batch.loss + penalty
        except BaseException:
            self._perturbation.restore()
            raise
        self._perturbation.hold_until_backward(self.bare_module, loss)
        result = {'loss': loss, 'output': batch.output.detach(), 'x_adv': x_adv, 'penalty': penalty.detach()}
        if batch.clean is not None:
            result['output_clean'] = batch.clean.detach()
        return result

    def update_ema(self, step: int | None = None) -> None:
        """As `timm.task.TrainingTask`, with the unperturbed weights, and alpha and beta in their range."""
        self._perturbation.restore()
        self.project()
        super().update_ema(step=step)

    def _perturbs(self) -> bool:
        """Whether weights are perturbed in this step; an error if the number of the update is needed and unknown."""
        gamma, start, warmup = self.options.awp_gamma, self.options.awp_start_update, self.options.eps_warmup_updates
        if not self.training:
            return False
        for name, value in (('eps_warmup_updates', warmup), ('awp_start_update', start if gamma else 0)):
            if value and self._update is None:
                raise RuntimeError(
                    f'{name} = {value} needs the number of the update: call task.begin_update(k) before update '
                    'k = 0, 1, ….')
        return gamma > 0 and (self._update or 0) >= start
