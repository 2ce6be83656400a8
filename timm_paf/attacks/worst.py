"""What an attack knows of each image of a batch, and the worst that it has found for each."""
import dataclasses

import torch
from torch import Tensor, nn

__all__ = ['Images', 'Worst', 'float32_logits']


@dataclasses.dataclass
class Images:
    """The images that the loop works on, one row each in every tensor.

    Attributes:
        x: (B, …), the images that are attacked.
        y: (B,), their labels.
        index: (B,), their places in the batch that the attack was called with.
        x_adv: (B, …), where the attack stands.
        clean_logits: (B, K), the model's logits on x.
        target: (B,), the class that the attack wants.
        seeds: (B,), a seed of each image.
        memory: (B, …), what the step rule remembers.
    """
    x: Tensor
    y: Tensor
    index: Tensor
    x_adv: Tensor
    clean_logits: Tensor | None = None
    target: Tensor | None = None
    seeds: Tensor | None = None
    memory: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> 'Images':
        """The images of some rows, (n,) int64, as a batch of their own."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Images(**{name: None if value is None else value[rows] for name, value in fields.items()})


@torch.no_grad()
def float32_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits without autocast: in the precision of the model's weights and x."""
    with torch.autocast(x.device.type, enabled=False):
        return model(x)


class Worst:
    """For each image of a batch the worst version seen: one that fools the model, else the one with the highest loss.

    Args:
        model: Judged under autocast, a version that seems to fool it counts only if it does so without.
        images: The batch; `target` decides what fooling is if `wanted`.
        wanted: Fooled means classified as the target, not just misclassified.
    """

    def __init__(self, model: nn.Module, images: Images, *, wanted: bool) -> None:
        self.model = model
        self.wanted = wanted
        self.x_adv = images.x.clone()
        self.fooled = torch.zeros_like(images.y, dtype=torch.bool)
        self.value = torch.full(images.y.shape, -torch.inf, dtype=torch.float64, device=images.y.device)
        if images.x.device.type == 'mps':  # has no float64
            self.value = self.value.float()
        self.mixed = torch.is_autocast_enabled(images.x.device.type)

    def standing(self) -> Tensor:
        """Places (n,) of the images that nothing has fooled the model with; waits for the device."""
        return (~self.fooled).nonzero().flatten()

    def _fools(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        predicted = logits.argmax(1)
        hit = predicted == target if self.wanted else predicted != y
        return hit & logits.isfinite().all(1)  # NaN is a broken model, not a fooled one

    def see(self, images: Images, logits: Tensor, values: Tensor | None, *, confirmed: bool = False) -> Tensor:
        """Take note of where the attack stands.

        Args:
            images: Some of the batch.
            logits: (b, K), on images.x_adv.
            values: (b,), the loss there; None for the images as they came, which any other version replaces.
            confirmed: The logits were computed without autocast.

        Returns:
            (b,) bool: which of them fool the model. Waits for the device under autocast only.
        """
        fools = self._fools(logits.detach(), images.y, images.target)
        if self.mixed and not confirmed and len(rows := fools.nonzero().flatten()):
            doubtful = images.take(rows)
            again = float32_logits(self.model, doubtful.x_adv.detach())
            fools = fools.index_copy(0, rows, self._fools(again, doubtful.y, doubtful.target))
        value = torch.full_like(fools, -torch.inf, dtype=self.value.dtype) if values is None else values.to(
            self.value.dtype)
        before, index = self.fooled[images.index], images.index
        worse = (fools & ~before) | ((fools == before) & (value > self.value[index]))
        self.fooled.index_copy_(0, index, fools | before)
        self.value.index_copy_(0, index, torch.where(worse, value, self.value[index]))
        mask = worse.view(-1, *[1] * (images.x.dim() - 1))
        self.x_adv.index_copy_(0, index, torch.where(mask, images.x_adv.detach(), self.x_adv[index]))
        return fools

    def settle(self, images: Images) -> None:
        """At the end of an attempt under autocast, look once more without it at what is kept of the images standing.

        What turns out to fool the model is not replaced by a later version that has a higher loss and does not. Waits
        for the device under autocast.
        """
        if self.mixed and len(rows := self.standing()):
            rest = images.take(rows)
            logits = float32_logits(self.model, self.x_adv[rows])
            self.fooled.index_copy_(0, rows, self._fools(logits, rest.y, rest.target))
