"""Correct masks: which images a model classifies correctly, clean or attacked; processes share the work."""
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf.attacks import eval_mode

__all__ = ['Attack', 'correct_mask', 'map_in_turn', 'model_device']

Attack = Callable[..., Tensor]
Item = TypeVar('Item')
Result = TypeVar('Result')


def model_device(model: nn.Module, default: torch.device) -> torch.device:
    """The device of the model's first parameter; `default` for a model without parameters."""
    return next((p.device for p in model.parameters()), default)


def map_in_turn(
        processes: Processes,
        items: Sequence[Item],
        work: Callable[[Sequence[Item]], list[Result]],
) -> list[Result]:
    """Results for all items, in every process; the processes take items in turn.

    Args:
        processes: The processes that share the items.
        items: All items; the same in every process.
        work: Called once, with the items of this process; returns one result for each.

    Raises:
        ValueError: Or OSError, in every process, if `work` raises one in any process.
    """
    n = processes.world_size
    parts = processes.all_gather_object(processes.run_together(lambda: work(items[processes.rank::n])))
    return [parts[number % n][number // n] for number in range(len(items))]


@torch.no_grad()
def correct_mask(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        attack: Attack | None,
        batch_size: int,
        device: torch.device | None,
        seeds: Tensor | None = None,
        processes: Processes | None = None,
) -> Tensor:
    """Which images the model classifies correctly, clean or attacked, in eval mode; the model is not changed.

    Batches do not depend on the number of processes, so that rounding does not either.

    Args:
        model: Maps images to logits.
        x: Images (N, …), on any device.
        y: Labels (N,).
        attack: Called per batch as attack(model, x, y), with `seeds=` if seeds are given; None for clean images.
        batch_size: Images per batch.
        device: Device of the model; that of its first parameter if None.
        seeds: One seed per image, (N,) int64, so that an image's random start does not depend on its batch.
        processes: Processes that share the images. Each has all images and receives the whole mask.

    Returns:
        (N,) bool on the CPU.

    Raises:
        ValueError: If the attack returns NaN, which would be counted as a misclassified image.
    """
    device = device or model_device(model, x.device)

    def correct_of(batches: Sequence[slice]) -> list[Tensor]:
        found, finite = [], torch.ones((), dtype=torch.bool, device=device)
        with eval_mode(model):
            for rows in batches:
                images, labels = x[rows].to(device), y[rows].to(device)
                if attack is not None:
                    seeded = {} if seeds is None else {'seeds': seeds[rows].to(device)}
                    images = attack(model, images, labels, **seeded)
                    finite &= images.isfinite().all()
                found.append(model(images).argmax(1) == labels)
        if not finite:
            raise ValueError(
                'the attack returned images with NaN, because gradients of the model are NaN; check_trust counts the '
                'affected images.')
        return [correct.cpu() for correct in found]

    batches = [slice(first, min(first + batch_size, len(x))) for first in range(0, len(x), batch_size)]
    return torch.cat(map_in_turn(processes or Processes(device), batches, correct_of))
