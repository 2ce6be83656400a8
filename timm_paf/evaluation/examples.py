"""Images beside what an attack makes of them, for a person to look at."""
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from timm_paf.attacks import eval_mode
from timm_paf.evaluation._verdicts import Attack

__all__ = ['Example', 'adversarial_examples']


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image, attacked.

    Args:
        original: (C, H, W) in [0, 1], on the CPU.
        adversarial: What the attack made of it, like original.
        label: Its class.
        clean_prediction: What the model takes the original for.
        prediction: What the model takes the adversarial image for.
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
    """The first n images, fooled or not, with what an attack makes of them.

    Args:
        model: Maps images in [0, 1] to logits; left as found.
        x: Images (N, C, H, W) in [0, 1].
        y: Labels (N,).
        attack: Called as attack(model, x, y), with `seeds=` if they are given.
        title: What to call the attack.
        n: How many; fewer if there are fewer.
        device: Where the model is; its first parameter's if None.
        seeds: A seed of each image, (N,), int64, as `accuracy_under_attack`.
    """
    device = device or next((p.device for p in model.parameters()), x.device)
    x, y = x[:n].to(device), y[:n].to(device)
    with eval_mode(model):
        x_adv = attack(model, x, y, **({} if seeds is None else {'seeds': seeds[:n].to(device)}))
        clean, attacked = model(x).argmax(1).tolist(), model(x_adv).argmax(1).tolist()
    return tuple(
        Example(
            original=original, adversarial=adversarial, label=label, clean_prediction=before, prediction=after,
            attack=title)
        for original, adversarial, label, before, after in
        zip(x.float().cpu(), x_adv.float().cpu(), y.tolist(), clean, attacked, strict=True))
