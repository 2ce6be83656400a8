"""State of an attack on a batch, and the best adversarial image found for each image."""
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ['AttackState', 'BestAdversarial', 'logits_without_autocast']


@dataclass
class AttackState:
    """The images under attack, one row per image in every tensor."""
    x: Tensor  # clean images (B, …)
    y: Tensor  # labels
    index: Tensor  # rows in the batch that the attack was called with
    x_adv: Tensor  # the current adversarial images
    clean_logits: Tensor | None = None  # the model's logits on x, (B, K)
    target: Tensor | None = None  # the class that the attack aims for
    seeds: Tensor | None = None
    memory: Tensor | None = None  # the last direction, for the step rule

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> 'AttackState':
        """The state of some rows, (n,) int64, as a batch of its own."""
        return AttackState(**{name: value[rows] for name, value in vars(self).items() if value is not None})


@torch.no_grad()
def logits_without_autocast(model: nn.Module, x: Tensor) -> Tensor:
    """Logits in the precision of the model's weights and x."""
    with torch.autocast(x.device.type, enabled=False):
        return model(x)


class BestAdversarial:
    """The best adversarial image of each image, see `PGD`; if `targeted`, success is classification as the target."""

    def __init__(self, model: nn.Module, state: AttackState, *, targeted: bool) -> None:
        self.model, self.targeted = model, targeted
        self.x_adv = state.x.clone()
        self.fooled = torch.zeros_like(state.y, dtype=torch.bool)
        wide = torch.float32 if state.x.device.type == 'mps' else torch.float64  # mps has no float64
        self.value = torch.full(state.y.shape, -torch.inf, dtype=wide, device=state.y.device)
        self.mixed = torch.is_autocast_enabled(state.x.device.type)

    def robust_rows(self) -> Tensor:
        """Rows (n,) of the images that are still robust; waits for the device."""
        return (~self.fooled).nonzero().flatten()

    def _fools(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        predicted = logits.argmax(1)
        success = predicted == target if self.targeted else predicted != y
        return success & logits.isfinite().all(1)  # NaN logits are a broken model, not a success

    def update(self, state: AttackState, logits: Tensor, values: Tensor | None, *, exact: bool = False) -> Tensor:
        """Compare the current images of some rows, with their logits (b, K) and losses (b,), with the best ones.

        `values` is None for the clean images, which any adversarial image replaces; `exact` logits were computed
        without autocast. Returns which images fool the model, (b,) bool; waits for the device under autocast only.
        """
        fools = self._fools(logits, state.y, state.target)
        if self.mixed and not exact and len(rows := fools.nonzero().flatten()):
            doubtful = state.take(rows)
            again = logits_without_autocast(self.model, doubtful.x_adv)
            fools = fools.index_copy(0, rows, self._fools(again, doubtful.y, doubtful.target))
        if values is None:
            values = torch.full_like(fools, -torch.inf, dtype=self.value.dtype)
        value, index = values.to(self.value.dtype), state.index
        before = self.fooled[index]
        better = (fools & ~before) | ((fools == before) & (value > self.value[index]))
        self.fooled.index_copy_(0, index, fools | before)
        self.value.index_copy_(0, index, torch.where(better, value, self.value[index]))
        mask = better.view(-1, *[1] * (state.x.dim() - 1))
        self.x_adv.index_copy_(0, index, torch.where(mask, state.x_adv, self.x_adv[index]))
        return fools

    def recheck(self, state: AttackState) -> None:
        """Count successes that autocast hid, so that no later image with a higher loss replaces them."""
        if self.mixed and len(rows := self.robust_rows()):
            rest = state.take(rows)
            logits = logits_without_autocast(self.model, self.x_adv[rows])
            self.fooled.index_copy_(0, rows, self._fools(logits, rest.y, rest.target))
