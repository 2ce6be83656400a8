"""What the trust checks look at: a model on a few images, with what was computed kept and passes counted."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from timm_paf.attacks import PGD, ThreatModel, autoattack, eval_mode, frozen_parameters

__all__ = ['Probe']


class Probe:
    """A model and the images that it is questioned on.

    Args:
        model: Maps images in [0, 1] to logits; in eval mode while it is questioned.
        x: Images (N, …), on any device.
        y: Labels (N,).
        threat: Norm and radius.
        batch_size: Images a batch.
        seed: Seed of attacks and noise.
        device: Where the model is.

    Attributes:
        forwards: Images passed through the model without a gradient so far.
        backwards: Images passed forward and backward so far.
        clean_logits: (N, K).
        correct: (N,) bool: classified correctly without an attack.
        gradients: Of the loss to the images, at noise such as PGD starts from; None if there are none.
        random: Whether two passes were seen to differ.
        square_images: Images that APGD and Square were given.
    """

    def __init__(
            self,
            model: nn.Module,
            x: Tensor,
            y: Tensor,
            *,
            threat: ThreatModel,
            batch_size: int,
            seed: int,
            device: torch.device,
    ) -> None:
        self.model, self.x, self.y = model, x.detach().float().to(device), y.to(device)
        self.threat, self.batch_size, self.seed, self.device = threat, batch_size, seed, device
        self.forwards = self.backwards = 0
        self.random = False
        self.square_images = 0
        self.clean_logits = self.logits(self.x)
        self.correct = self.clean_logits.argmax(1) == self.y
        self.gradients = self._gradients()
        self._attacked: dict[tuple, Tensor] = {}

    def __len__(self) -> int:
        return len(self.x)

    @torch.no_grad()
    def logits(self, x: Tensor, *, autocast: torch.dtype | None = None) -> Tensor:
        """Logits (N, K) in float32; under autocast if a dtype is given."""
        self.forwards += len(x)
        with eval_mode(self.model), torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            return torch.cat([self.model(batch).float() for batch in x.split(self.batch_size)])

    def standing(self, x: Tensor) -> Tensor:
        """(N,) bool: classified correctly as it is and as x."""
        return self.correct & (self.logits(x).argmax(1) == self.y)

    def noise(self, generator: torch.Generator) -> Tensor:
        """The images, each moved by eps in a random direction: in Linf to a corner of the ball, else evenly on it."""
        direction = torch.randn(self.x.shape, generator=generator, device=self.device)
        if self.threat.norm == 'linf':
            direction = direction.sign()
        elif self.threat.norm == 'l1':  # exponential lengths give a uniform point of the simplex
            direction = torch.empty_like(direction).exponential_(generator=generator) * direction.sign()
        order = {'linf': float('inf'), 'l2': 2, 'l1': 1}[self.threat.norm]
        length = torch.linalg.vector_norm(direction.flatten(1), order, dim=1)
        return (self.x + direction * (self.threat.radius / length).view(-1, *[1] * (self.x.dim() - 1))).clamp(0, 1)

    def pgd(self, steps: int, *, loss: str = 'ce', eps: float | None = None) -> Tensor:
        """Images that PGD makes; where no gradient reaches an image, or it is NaN, the image itself."""
        key = (steps, loss, eps)
        if key not in self._attacked:
            x_adv = self.x
            if self.gradients is not None:
                attack = PGD(
                    eps=eps or self.threat.radius, steps=steps, norm=self.threat.norm, seed=self.seed,
                    loss=loss)
                seeds = torch.arange(len(self), device=self.device)
                x_adv = torch.cat([
                    attack(self.model, self.x[rows], self.y[rows], seeds=rows)
                    for rows in seeds.split(self.batch_size)])
                self.backwards += steps * len(self)
            self._attacked[key] = torch.where(x_adv.isfinite(), x_adv, self.x)
        return self._attacked[key]

    def autoattack(self, chosen: Tensor, attacks: Sequence[str]) -> Tensor:
        """Indices (n,): which of the chosen images these components of AutoAttack leave standing."""
        if not len(chosen):
            return chosen
        found = autoattack(
            self.model, self.x[chosen].cpu(), self.y[chosen].cpu(), eps=self.threat.radius, norm=self.threat.norm,
            version='custom', attacks=attacks, batch_size=self.batch_size, seed=self.seed, device=self.device)
        return chosen[found.robust.to(self.device)]

    def _gradients(self) -> Tensor | None:
        """Gradients of the loss like the images, at noise such as PGD starts from; None if the logits have none."""
        start = self.noise(torch.Generator(self.device).manual_seed(self.seed))
        found = []
        with eval_mode(self.model), frozen_parameters(self.model), torch.enable_grad():
            for images, labels in zip(start.split(self.batch_size), self.y.split(self.batch_size), strict=True):
                images.requires_grad_()
                logits = self.model(images)
                if not logits.requires_grad:
                    return None
                loss = functional.cross_entropy(logits.float(), labels, reduction='sum')
                (gradient,) = torch.autograd.grad(loss, images, allow_unused=True)
                if gradient is None:
                    return None
                found.append(gradient)
        self.backwards += len(self)
        return torch.cat(found)
