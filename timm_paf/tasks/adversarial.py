"""Adversarial training as a timm task."""
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.layers import use_reentrant_ckpt
from timm.task import ClassificationTask
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from timm_paf.activations import check_parameters, paf_parameters, project_parameters, shared_activations
from timm_paf.tasks.losses import class_of, wide
from timm_paf.tasks.options import TaskOptions
from timm_paf.tasks.perturbation import WeightPerturbation

__all__ = ['AdversarialTrainingTask', 'Attack', 'BatchLoss', 'learnable_betas']

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def learnable_betas(model: nn.Module) -> list[nn.Parameter]:
    """The learnable beta parameters of a model, each once."""
    return [p for name, p in paf_parameters(model).items() if name.rsplit('.', 1)[-1] == 'beta']


class BatchLoss(NamedTuple):
    """What a task computes of a batch.

    Attributes:
        loss: Scalar.
        output: Logits (B, num_classes) on the images that are counted as the training accuracy: the attacked ones.
        clean: Logits (B, num_classes) on the images themselves, if they went through the model.
    """
    loss: Tensor
    output: Tensor
    clean: Tensor | None = None


class AdversarialTrainingTask(ClassificationTask):
    """Train on the images that an attack makes of a batch (Madry et al., arXiv 1706.06083).

    The attack runs on the module inside DistributedDataParallel, in whatever BatchNorm mode it documents; the loss is
    the criterion on its images with the model in the mode that it was found in, in one pass through the wrapper, so
    that running statistics move once a step. A subclass says in `loss_of` what the loss is.

    For PSSiLU the published recipe adds 10 |beta| to the loss and clips the gradient of beta to norm 0.01 (Dai et al.,
    arXiv 2110.05626). Both apply to each learnable beta, and to nothing else: a model without one is trained as if they
    were absent. Whatever their strength, alpha and beta are put back into their range after each update. Clipping has
    to see the gradient that the optimizer uses, after unscaling and averaging over processes, so the task is told the
    optimizer: `task.attach_optimizer(optimizer)`.

    With gradient accumulation, adversarial weight perturbation is made anew for each micro-batch, of that micro-batch's
    gradient, as if it were a batch of its own: perturbing once an update would need all its attacks before its first
    backward pass.

    Args:
        model: Network for images in [0, 1].
        attack: Called as attack(model, x, y); returns images like x. None trains on the images as they are.
        options: Settings; those of other losses are without effect.
        criterion: Loss of (logits, target); cross-entropy with `options.smoothing` if None.
        device: Where the model is; by default its first parameter's.
        **kwargs: As `timm.task.ClassificationTask`.

    Raises:
        ValueError: If smoothing is asked for beside a criterion, warm-up with an attack that has no `eps`, or alpha or
            beta of the model are outside the range that training keeps them in.
    """

    def __init__(
            self,
            model: nn.Module,
            attack: Attack | None,
            *,
            options: TaskOptions | None = None,
            criterion: nn.Module | Callable | None = None,
            device: torch.device | None = None,
            **kwargs: Any,
    ) -> None:
        options = TaskOptions() if options is None else options
        if criterion is not None and options.smoothing:
            raise ValueError(
                f'smoothing = {options.smoothing} beside a criterion of its own: set the smoothing in the criterion.')
        if device is None:
            device = next((p.device for p in model.parameters()), torch.device('cpu'))
        check_parameters(model, beta_bound=options.beta_bound)
        super().__init__(
            model, nn.CrossEntropyLoss(label_smoothing=options.smoothing) if criterion is None else criterion,
            device=device, **kwargs)
        self.attack = attack
        self.options = options
        self._perturbation = WeightPerturbation(options.awp_gamma)
        self._update: int | None = None
        self._versions: tuple[int, ...] = ()
        self._full_strength: tuple[float, float | None] = (0., None)
        if options.eps_warmup_updates and attack is not None:
            eps = getattr(attack, 'eps', None)
            if not isinstance(eps, float):
                raise ValueError(
                    f'eps_warmup_updates = {options.eps_warmup_updates}: the attack {type(attack).__name__} has no '
                    'float `eps` that could grow.')
            self._full_strength = eps, getattr(attack, 'step_size', None)

    @property
    def betas(self) -> list[nn.Parameter]:
        """The learnable beta parameters of the model; looked up each time, since wrapping may replace parameters."""
        return learnable_betas(self.trainable_module)

    @property
    def bare_module(self) -> nn.Module:
        """The network inside DistributedDataParallel, compiled if it was compiled."""
        module = self.trainable_module
        return module.module if isinstance(module, DistributedDataParallel) else module

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> 'AdversarialTrainingTask':
        """As `timm.task.ClassificationTask`.

        Raises:
            ValueError: If the model shares an activation and recomputes its blocks by reentrant checkpointing. Each
                block would then report the gradient of the one activation by itself, and DistributedDataParallel takes
                one report a step.
        """
        model = self.trainable_module
        shared = any(list(module.parameters()) for module in shared_activations(model).values())
        if shared and _recomputes_reentrantly(model):
            raise ValueError(
                'a shared activation cannot be trained under DistributedDataParallel with reentrant gradient '
                'checkpointing; switch to the other kind with timm.layers.set_reentrant_ckpt(False), or turn gradient '
                'checkpointing off.')
        return super().prepare_distributed(device_ids, **ddp_kwargs)

    def begin_update(self, update: int) -> None:
        """Set what depends on time: the attack's strength in warm-up, and whether weights are perturbed.

        Both are functions of the number alone, so that a resumed run needs no state for them. To be called before every
        update (not every micro-batch) if `eps_warmup_updates` or `awp_start_update` is set; else it changes nothing.

        In warm-up of n updates, update k has the fraction (k + 1)/n of the attack's radius, and of its step size, so
        that the steps keep their size relative to the ball.

        Args:
            update: Number of the update in the whole run, from 0.

        Raises:
            ValueError: If it is negative.
        """
        if update < 0:
            raise ValueError(f'update = {update}: expected the number of the update in the run, from 0.')
        self._update = update
        if self.options.eps_warmup_updates and self.attack is not None:
            fraction = min(1., (update + 1) / self.options.eps_warmup_updates)
            eps, step_size = self._full_strength
            attack: Any = self.attack
            attack.eps = eps * fraction
            if step_size is not None:
                attack.step_size = step_size * fraction

    def attach_optimizer(self, optimizer: torch.optim.Optimizer) -> '_Handles':
        """Just before every step of this optimizer clip beta's gradient, and just after it put parameters into range.

        Args:
            optimizer: The optimizer that updates the model.

        Returns:
            A handle whose `remove()` ends both.
        """
        def before(*_: Any) -> None:
            self._perturbation.restore()
            self.clip_beta_gradients()

        return _Handles(
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(lambda *_: self.project()))

    def clip_beta_gradients(self) -> None:
        """Scale the gradient of each beta down to norm `beta_grad_clip` where it is larger."""
        if self.options.beta_grad_clip is None:
            return
        for beta in self.betas:
            torch.nn.utils.clip_grad_norm_([beta], self.options.beta_grad_clip)

    def project(self) -> None:
        """Put alpha and beta back into their range, see `timm_paf.activations.project_parameters`."""
        project_parameters(self.trainable_module, beta_bound=self.options.beta_bound)

    def _project_if_changed(self) -> None:
        """`project` where no optimizer is attached, but not between two losses that share a backward pass."""
        def versions() -> tuple[int, ...]:
            return tuple(p._version for p in paf_parameters(self.trainable_module).values())

        if versions() != self._versions:
            self.project()
            self._versions = versions()

    def penalty(self) -> Tensor:
        """beta_penalty times the sum of |beta|; a scalar, 0 without a learnable beta."""
        total = torch.zeros((), device=self.device)
        if self.options.beta_penalty:
            for beta in self.betas:
                total = total + beta.abs().sum().to(self.device)
        return self.options.beta_penalty * total

    def images(self, input: Tensor, target: Tensor) -> Tensor:
        """The attacked images of a batch, like input; detached."""
        if self.attack is None:
            return input
        return self.attack(self.bare_module, input, class_of(target))

    def loss_of(self, model: nn.Module, input: Tensor, x_adv: Tensor, target: Tensor) -> BatchLoss:
        """The loss of a batch without the penalty, in one pass through a model.

        Args:
            model: The network or a wrapper of it.
            input: Images (B, C, H, W).
            x_adv: What the attack made of them.
            target: As `forward`.
        """
        output = model(x_adv)
        return BatchLoss(self.criterion(wide(output), target), output)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Attack a batch and compute the loss on the result.

        Of soft labels the attack is given the likeliest class. Climbing the loss of a smoothed label would raise the
        probability of the true class wherever that is above the label's share: no attack at all.

        Args:
            input: Images (B, C, H, W) in [0, 1].
            target: Labels (B,), int64, or probabilities (B, num_classes) if the criterion takes them.

        Returns:
            'loss', a scalar; 'output', the logits (B, num_classes) on the attacked images; 'output_clean', those on the
            images, where the loss needs them; 'x_adv', the attacked images; 'penalty', the part of the loss that is
            |beta|'s. Only the loss carries a graph.

        Raises:
            RuntimeError: If an option depends on the number of the update and `begin_update` was not called.
            ValueError: If weights are to be perturbed and blocks are recomputed by reentrant checkpointing, which hides
                their weights from the gradient.
        """
        if self.training:
            self._project_if_changed()
        self._check_time()
        perturbs = self._perturbs()
        x_adv = self.images(input, target)
        try:
            if perturbs:
                group = getattr(self.trainable_module, 'process_group', None)  # of DistributedDataParallel
                self._perturbation.perturb(
                    self.bare_module, lambda: self.loss_of(self.bare_module, input, x_adv, target).loss, group=group)
            batch = self.loss_of(self.trainable_module, input, x_adv, target)
            penalty = self.penalty()
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
        """As `timm.task.TrainingTask`, of the weights as the optimizer left them, in their range."""
        self._perturbation.restore()
        self.project()
        super().update_ema(step=step)

    def _perturbs(self) -> bool:
        if not self.training or not self.options.awp_gamma:
            return False
        if _recomputes_reentrantly(self.trainable_module):
            raise ValueError(
                f'awp_gamma = {self.options.awp_gamma}: weights cannot be perturbed with reentrant gradient '
                'checkpointing; switch to the other kind with timm.layers.set_reentrant_ckpt(False).')
        return self._update is None or self._update >= self.options.awp_start_update

    def _check_time(self) -> None:
        if self._update is not None or not self.training:
            return
        for name in ('eps_warmup_updates', *(('awp_start_update',) if self.options.awp_gamma else ())):
            if getattr(self.options, name):
                raise RuntimeError(
                    f'{name} = {getattr(self.options, name)} counts updates: call task.begin_update(k) before update '
                    'k = 0, 1, ….')


def _recomputes_reentrantly(model: nn.Module) -> bool:
    return use_reentrant_ckpt() and any(getattr(module, 'grad_checkpointing', False) for module in model.modules())


class _Handles:
    """Several hooks of torch as one."""

    def __init__(self, *handles: Any) -> None:
        self._handles = handles

    def remove(self) -> None:
        """End all of them."""
        for handle in self._handles:
            handle.remove()
