"""Adversarial weight perturbation (AWP): computes the gradient of a batch at weights with a higher loss."""
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from timm_paf.attacks import still_statistics

__all__ = ['WeightPerturbation']


class WeightPerturbation:
    r"""AWP of Wu et al. (arXiv 2004.05884): moves each weight w by gamma ||w|| g/||g||, g the gradient of the loss.

    .. math:: w \leftarrow w + \gamma\,\lVert w\rVert\,\frac{g}{\lVert g\rVert}

    It perturbs the learnable tensors of rank above 1, in place, and restores them bit for bit when the backward pass of
    the loss ends. A call of the model, its state dict, the next `perturb` and `restore` restore them earlier, so that
    nothing else reads perturbed weights. A later backward pass of that loss is then an error of autograd.
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self._saved: list[tuple[nn.Parameter, Tensor]] = []
        self._guards: list[Any] = []

    @property
    def active(self) -> bool:
        """Whether weights are perturbed now."""
        return bool(self._saved)

    def perturb(self, model: nn.Module, loss: Callable[[], Tensor], *, group: Any | None = None) -> None:
        """Perturb all weights by one step that increases the loss; running statistics and `.grad` do not change.

        `model` is the network without DistributedDataParallel. The gradient is averaged over the process group.
        """
        self.restore()
        weights = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
        if not weights:
            return
        with torch.enable_grad(), still_statistics(model):
            value = loss()
            device = value.device.type
            float16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
            scale = 1024. if float16 else 1.  # keeps gradients above the smallest float16; only directions are used
            found = torch.autograd.grad(value * scale, weights, allow_unused=True)
        gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
        if group is not None:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat, group=group)
            parts = (flat / dist.get_world_size(group)).split([g.numel() for g in gradients])
            gradients = [part.view_as(g).to(g.dtype) for part, g in zip(parts, gradients, strict=True)]
        self._saved = [(weight, weight.detach().clone()) for weight in weights]
        with torch.no_grad():  # the caller restores them after an error
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.add_(_step(weight, gradient, self.gamma))
        torch.clear_autocast_cache()  # it holds the unperturbed weights in half precision

    def hold_until_backward(self, model: nn.Module, loss: Tensor) -> None:
        """Restore the weights when the backward pass of a loss ends, or when something reads them before."""
        if not loss.requires_grad:
            self.restore()
        if not self._saved:
            return
        # The hooks exist only until then, so that copies, files and compiled code of the model never contain them.
        inner = getattr(model, '_orig_mod', model)  # of a compiled model: its state dict comes from there
        self._guards = [
            inner.register_state_dict_pre_hook(lambda *_: self.restore()),
            *(module.register_forward_pre_hook(lambda *_: self.restore()) for module in {model, inner}),
        ]
        # at the end of the backward pass, as torch's data parallel modules do
        loss.register_hook(lambda _: torch.autograd.Variable._execution_engine.queue_callback(self.restore))

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the unperturbed weights; no effect if nothing is perturbed."""
        while self._guards:
            self._guards.pop().remove()
        if self._saved:
            saved, self._saved = self._saved, []
            for weight, original in saved:
                weight.copy_(original)
            torch.clear_autocast_cache()


def _step(weight: Tensor, gradient: Tensor, gamma: float) -> Tensor:
    """Gamma ||w|| g/||g||, in float32 or better; 0 if the gradient is 0 or not finite."""
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    length = torch.linalg.vector_norm(wide)
    size = gamma * torch.linalg.vector_norm(weight.to(wide.dtype))
    known = (length > 0) & length.isfinite()
    return torch.where(known, wide / length * size, torch.zeros_like(wide)).to(weight.dtype)
