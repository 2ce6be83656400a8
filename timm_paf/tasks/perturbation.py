"""Adversarial weight perturbation: the gradient of a batch is taken at weights that are worse for it."""
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from timm_paf.attacks import still_statistics

__all__ = ['WeightPerturbation']

# float16 gradients of a mean over a batch are near the smallest numbers that it has; the direction is all that is used
_FLOAT16_SCALE = 1024.


class WeightPerturbation:
    """AWP of Wu et al. (arXiv 2004.05884): each weight w moved by gamma ||w|| g/||g||, g the gradient of the loss.

    Perturbed are the learnable tensors of rank above 1; biases, normalisations, alpha and beta are not. The weights are
    changed in place, since a backward pass that recomputes (gradient checkpointing) must find them, and are put back,
    bit for bit, when the backward pass of the loss ends. Whoever looks earlier finds the true weights all the same: a
    call of the model, its state dict, the next `perturb`, and `restore` put them back at once. The backward pass of the
    abandoned loss is then an error of autograd, not a wrong gradient.

    Args:
        gamma: Norm of the perturbation over that of the weight, above 0.
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self._saved: list[tuple[nn.Parameter, Tensor]] = []
        self._guards: list[Any] = []

    @property
    def active(self) -> bool:
        """Whether weights are perturbed at the moment."""
        return bool(self._saved)

    def perturb(self, model: nn.Module, loss: Callable[[], Tensor], *, group: Any | None = None) -> None:
        """Climb the loss by one step of all weights.

        Args:
            model: The bare network.
            loss: Computes the loss with it; running statistics stay as they are. No gradient of a parameter is written.
            group: Process group over which the gradient is averaged, so that all processes perturb alike.
        """
        self.restore()
        weights = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
        if not weights:
            return
        with torch.enable_grad(), still_statistics(model):
            value = loss()
            scale = _FLOAT16_SCALE if _autocasts_to_float16(value.device.type) else 1.
            found = torch.autograd.grad(value * scale, weights, allow_unused=True)
        gradients = [
            torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
        if group is not None:
            _average(gradients, group)
        self._saved = [(weight, weight.detach().clone()) for weight in weights]
        try:
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.add_(_step(weight, gradient, self.gamma))
            torch.clear_autocast_cache()  # which holds the true weights in half precision
        except BaseException:
            self.restore()
            raise

    def hold_until_backward(self, model: nn.Module, loss: Tensor) -> None:
        """Put the weights back when the backward pass of a loss ends, or when someone looks at them before that.

        Args:
            model: The bare network.
            loss: What was computed with the perturbed weights; if nothing can be differentiated they are put back now.
        """
        if not self._saved:
            return
        if not loss.requires_grad:
            self.restore()
            return
        # The guards are there for this window only: copies, files and compiled code of the model never carry them.
        inner = getattr(model, '_orig_mod', model)  # of a compiled model: its state dict is read from there
        self._guards = [
            inner.register_state_dict_pre_hook(lambda *_: self.restore()),
            *(module.register_forward_pre_hook(lambda *_: self.restore()) for module in {model, inner}),
        ]
        loss.register_hook(self._at_the_end_of_backward)

    def _at_the_end_of_backward(self, _: Tensor) -> None:
        # the way in which torch's own data parallel modules learn that a backward pass has ended
        torch.autograd.Variable._execution_engine.queue_callback(self.restore)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the true weights back; nothing if they are there."""
        for guard in self._guards:
            guard.remove()
        self._guards = []
        saved, self._saved = self._saved, []
        for weight, true in saved:
            weight.copy_(true)
        if saved:
            torch.clear_autocast_cache()


def _step(weight: Tensor, gradient: Tensor, gamma: float) -> Tensor:
    """Gamma ||w|| g/||g||; nothing where the gradient has no direction."""
    wide = gradient if gradient.dtype == torch.float64 else gradient.float()
    length = torch.linalg.vector_norm(wide)
    size = gamma * torch.linalg.vector_norm(weight.to(wide.dtype))
    known = (length > 0) & length.isfinite()
    return torch.where(known, wide / length * size, torch.zeros_like(wide)).to(weight.dtype)


def _average(gradients: list[Tensor], group: Any) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for i, (gradient, part) in enumerate(
            zip(gradients, flat.split([g.numel() for g in gradients]), strict=True)):
        gradients[i] = part.view_as(gradient).to(gradient.dtype)


def _autocasts_to_float16(device_type: str) -> bool:
    return torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16
