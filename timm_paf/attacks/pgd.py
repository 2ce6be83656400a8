"""Projected gradient descent: the one loop behind every gradient attack here."""
from collections.abc import Callable, Mapping
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional

from .balls import ball
from .state import eval_mode, frozen_parameters
from .threat import Eps, parse_eps

__all__ = ['PGD', 'LOSSES']

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K) and labels (B,), one value an image, in float32 or better."""
    return functional.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, y, reduction='none')


def kl(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(clean || logits) of logits (B, K), one value an image."""
    return functional.kl_div(
        logits.float().log_softmax(1), clean.float().log_softmax(1), reduction='none', log_target=True).sum(1)


LOSSES: dict[str, Loss] = {'ce': cross_entropy, 'kl': kl}


class PGD:
    """PGD of Madry et al. (arXiv 1706.06083): steps up the loss, each projected back into the ball and into [0, 1].

    The model runs in eval mode, as in the trainer of Dai et al. (arXiv 2110.05626): BatchNorm uses its running
    statistics and does not change them. Parameters, their gradients, the training flag of every submodule and the
    global random state are as before when the call returns or raises. Nothing in the loop waits for the device.

    Args:
        eps: Radius in units of [0, 1], '8/255' or a number.
        step_size: Length of a step, as eps; default 2.5 eps / steps, with which the far side of the ball is reached
            from any start.
        steps: Number of gradient steps, at least 1.
        norm: 'linf'.
        loss: A name of `LOSSES`, or a function (logits (B, K), labels (B,)) -> values (B,) for the attack to climb.
        random_start: Start at a uniformly random point of the ball instead of at the image.
        seed: Seed of the random starts; each call continues the sequence.

    Raises:
        ValueError: If a setting is not as expected.

    Example:
        >>> x_adv = PGD(eps='8/255', step_size='2/255', steps=10)(model, x, y)
    """

    def __init__(
            self,
            *,
            eps: Eps,
            step_size: Optional[Eps] = None,
            steps: int = 10,
            norm: str = 'linf',
            loss: Union[str, Loss] = 'ce',
            random_start: bool = True,
            seed: int = 0,
    ) -> None:
        self.ball = ball(norm)
        self.eps = parse_eps(eps, norm=norm)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f'steps = {steps!r}: expected a whole number, 1 or more.')
        self.steps = steps
        self.step_size = 2.5 * self.eps / steps if step_size is None else parse_eps(
            step_size, label='step_size', norm=norm)
        if isinstance(loss, str) and loss not in LOSSES:
            raise ValueError(f'loss = {loss!r}: expected {" or ".join(LOSSES)}, or a function.')
        self.loss = LOSSES[loss] if isinstance(loss, str) else loss
        self.norm = norm
        self.random_start = random_start
        self.seed = seed
        self._generator: Optional[torch.Generator] = None

    def __repr__(self) -> str:
        return f'PGD(norm={self.norm!r}, eps={self.eps:g}, step_size={self.step_size:g}, steps={self.steps})'

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator of the random starts on a device; the sequence begins with the seed."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator

    def state_dict(self) -> dict[str, Any]:
        """Where the sequence of random starts stands: empty before the first call."""
        if self._generator is None:
            return {}
        return {'device': str(self._generator.device), 'generator': self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._generator = None
        if state:
            self._generator = torch.Generator(state['device'])
            self._generator.set_state(state['generator'].cpu())

    def __call__(
            self,
            model: nn.Module,
            x: Tensor,
            y: Tensor,
            *,
            generator: Optional[torch.Generator] = None,
            clean_logits: Optional[Tensor] = None,
    ) -> Tensor:
        """Attack a batch.

        Args:
            model: Maps images to logits (B, K).
            x: Images (B, …), floating-point, in [0, 1].
            y: Labels (B,), int64.
            generator: Source of the random starts in place of the attack's own, on x's device.
            clean_logits: Logits (B, K) of x for the loss 'kl'; computed if None.

        Returns:
            Images like x, in [0, 1] exactly and in the ball up to the rounding of one addition; detached.

        Raises:
            ValueError: If x is not a floating-point batch with one label an image.
            RuntimeError: Inside torch.inference_mode, where nothing can be differentiated.
        """
        self._check(x, y)
        x = x.detach()
        if self.random_start:
            perturbation = self.ball.start(x, self.eps, generator or self.generator(x.device))
            x_adv = (x + perturbation).clamp(0, 1)
        else:
            x_adv = x.clamp(0, 1)
        with eval_mode(model), frozen_parameters(model), torch.enable_grad():
            reference = y
            if self.loss is kl:
                with torch.no_grad():
                    reference = model(x) if clean_logits is None else clean_logits
            for _ in range(self.steps):
                x_adv.requires_grad_()
                # a sum, not a mean: an image's gradient must not depend on how many others are in the batch
                loss = self.loss(model(x_adv), reference).sum()
                (gradient,) = torch.autograd.grad(loss, x_adv)
                x_adv = x_adv.detach() + self.ball.step(gradient, self.step_size)
                x_adv = (x + self.ball.project(x_adv - x, self.eps)).clamp(0, 1)
        return x_adv.detach()

    def _check(self, x: Tensor, y: Tensor) -> None:
        if torch.is_inference_mode_enabled() or x.is_inference():
            raise RuntimeError('PGD needs gradients, which torch.inference_mode rules out; use torch.no_grad instead.')
        if not x.is_floating_point() or x.dim() < 2:
            raise ValueError(
                f'x is a {x.dtype} tensor of shape {tuple(x.shape)}; expected a floating-point batch (B, C, H, W).')
        if y.shape != x.shape[:1]:
            raise ValueError(f'y has shape {tuple(y.shape)}; expected one label for each of {x.shape[0]} images.')
