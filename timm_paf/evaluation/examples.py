"""Images next to their attacked versions, for the report page."""
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from timm_paf.attacks import eval_mode
from timm_paf.evaluation.correct import Attack, model_device

__all__ = ['Example', 'adversarial_examples']


@dataclass(frozen=True)
class Example:
    """An image and its attacked version.

    Args:
        original: (C, H, W) in [0, 1], on the CPU.
        adversarial: The attacked image, like `original`.
        label: Its class.
        clean_prediction: Predicted class of the original.
        prediction: Predicted class of the attacked image.
        attack: Name of the attack, with norm and eps.
    """
    original: Tensor
    adversarial: Tensor
    label: int
    clean_prediction: int
    prediction: int
    attack: str


@torch.no_grad()
def adversarial_examples(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        attack: Attack,
        title: str,
        n: int = 12,
        device: torch.device | None = None,
        seeds: Tensor | None = None,
) -> tuple[Example, ...]:
    """The first n images with their attacked versions, whether the attack succeeds or not.

    Args:
        model: Maps images in [0, 1] to logits; it is not changed.
        x: Images (N, C, H, W) in [0, 1].
        y: Labels (N,).
        attack: Called as attack(model, x, y), with `seeds=` if seeds are given.
        title: Name of the attack.
        n: Number of examples; at most N.
        device: Device of the model; that of its first parameter if None.
        seeds: One seed per image, (N,) int64, as in `accuracy_under_attack`.
    """
    device = device or model_device(model, x.device)
    x, y = x[:n].to(device), y[:n].to(device)
    with eval_mode(model):
        x_adv = attack(model, x, y, **({} if seeds is None else {'seeds': seeds[:n].to(device)}))
        clean, attacked = model(x).argmax(1).tolist(), model(x_adv).argmax(1).tolist()
    return tuple(
        Example(original, adversarial, label, before, after, title) for original, adversarial, label, before, after in
        zip(x.float().cpu(), x_adv.float().cpu(), y.tolist(), clean, attacked, strict=True))
