"""The model and images of the trust checks; caches results and counts forward and backward passes."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from timm_paf.attacks import PGD, ThreatModel, autoattack, eval_mode, frozen_parameters
from timm_paf.evaluation.accuracy import Accuracy

__all__ = ['Probe']


class Probe:
    """A model and the images on which the trust checks run it; arguments as in `check_trust`."""

    def __init__(
            self, model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, batch_size: int, seed: int,
            device: torch.device, n_square: int = 32, clean: Accuracy | None = None,
            trained_clean: Accuracy | None = None, capture: str = 'auto',
    ) -> None:
        self.model, self.x, self.y = model, x.detach().float().to(device), y.to(device)
        self.threat, self.batch_size, self.seed, self.device = threat, batch_size, seed, device
        self.n_square, self.clean, self.trained_clean, self.capture = n_square, clean, trained_clean, capture
        self.forwards = self.backwards = 0  # images passed forward only, and forward and backward
        self.square_images = 0  # images attacked by APGD and Square
        self.random = False  # whether two passes over the same images gave different logits
        self.clean_logits = self.logits(self.x)  # (N, K)
        self.correct = self.clean_logits.argmax(1) == self.y  # (N,) bool
        self.gradients = self._gradients()  # of the loss, at the images plus noise; None if the logits have none
        self._attacked: dict[tuple[int, str, float | None], Tensor] = {}

    def __len__(self) -> int:
        return len(self.x)

    @torch.no_grad()
    def logits(self, x: Tensor, *, autocast: torch.dtype | None = None) -> Tensor:
        """Logits (N, K) in float32, computed under autocast if a dtype is given."""
        self.forwards += len(x)
        with eval_mode(self.model), torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            return torch.cat([self.model(batch).float() for batch in x.split(self.batch_size)])

    def robust(self, x_adv: Tensor) -> Tensor:
        """(N,) bool: classified correctly both as the original image and as x_adv."""
        return self.correct & (self.logits(x_adv).argmax(1) == self.y)

    def noise(self, generator: torch.Generator) -> Tensor:
        """The images, each moved by eps in a random direction: linf to a corner of the ball, else uniformly on it."""
        direction = torch.randn(self.x.shape, generator=generator, device=self.device)
        if self.threat.norm == 'linf':
            direction = direction.sign()
        elif self.threat.norm == 'l1':  # exponential lengths give a uniform point of the simplex
            direction = torch.empty_like(direction).exponential_(generator=generator) * direction.sign()
        order = {'linf': float('inf'), 'l2': 2, 'l1': 1}[self.threat.norm]
        length = torch.linalg.vector_norm(direction.flatten(1), order, dim=1)
        return (self.x + direction * (self.threat.radius / length).view(-1, *[1] * (self.x.dim() - 1))).clamp(0, 1)

    def pgd(self, steps: int, *, loss: str = 'ce', eps: float | None = None) -> Tensor:
        """Images attacked by PGD; the original image if its gradient is NaN or missing."""
        key = (steps, loss, eps)
        if self.gradients is None:
            return self.x
        if key not in self._attacked:
            attack = PGD(
                eps=eps or self.threat.radius, steps=steps, norm=self.threat.norm, seed=self.seed, loss=loss,
                capture=self.capture)
            x_adv = torch.cat([
                attack(self.model, self.x[seeds], self.y[seeds], seeds=seeds)
                for seeds in torch.arange(len(self), device=self.device).split(self.batch_size)])
            self.backwards += steps * len(self)
            self._attacked[key] = torch.where(x_adv.isfinite(), x_adv, self.x)
        return self._attacked[key]

    def autoattack(self, chosen: Tensor, attacks: Sequence[str]) -> Tensor:
        """Indices of those of the chosen images that are robust to the given components of AutoAttack, (n,) int64."""
        if not len(chosen):
            return chosen
        found = autoattack(
            self.model, self.x[chosen].cpu(), self.y[chosen].cpu(), eps=self.threat.radius, norm=self.threat.norm,
            version='custom', attacks=attacks, batch_size=self.batch_size, seed=self.seed, device=self.device,
            capture=self.capture)
        return chosen[found.robust.to(self.device)]

    def _gradients(self) -> Tensor | None:
        start = self.noise(torch.Generator(self.device).manual_seed(self.seed))
        found = []
        with eval_mode(self.model), frozen_parameters(self.model), torch.enable_grad():
            for images, labels in zip(start.split(self.batch_size), self.y.split(self.batch_size), strict=True):
                logits = self.model(images.requires_grad_())
                if not logits.requires_grad:
                    return None
                loss = functional.cross_entropy(logits.float(), labels, reduction='sum')
                (gradient,) = torch.autograd.grad(loss, images, allow_unused=True)
                if gradient is None:
                    return None
                found.append(gradient)
        self.backwards += len(self)
        return torch.cat(found)
