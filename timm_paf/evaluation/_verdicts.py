"""Verdicts of a model on images, attacked or not, by one process or by several that share them."""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf.attacks import eval_mode

__all__ = ['ALONE', 'Attack', 'verdicts']

Attack = Callable[..., Tensor]
ALONE = Processes(torch.device('cpu'))


@torch.no_grad()
def verdicts(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        attack: Attack | None,
        batch_size: int,
        device: torch.device | None,
        seeds: Tensor | None = None,
        ranks: Processes = ALONE,
) -> Tensor:
    """Which images are classified correctly as the attack leaves them, in eval mode; the model is left as found.

    Processes take batches in turn: the same batches as one process does, so that nothing is rounded in another way.

    Args:
        model: Maps images to logits.
        x: Images (N, …), on any device.
        y: Labels (N,).
        attack: Called batch by batch as attack(model, x, y), with `seeds=` of the batch if there are seeds; None for
            none.
        batch_size: Images a batch.
        device: Where the model is; its first parameter's if None.
        seeds: A seed of each image, (N,), int64, with which an image's start does not depend on its batch.
        ranks: The processes that share the images; each has all of them, and gets all verdicts.

    Returns:
        (N,) bool on the CPU.

    Raises:
        ValueError: If the attack makes NaN: no verdict on them would say anything about an image.
    """
    device = device or next((p.device for p in model.parameters()), x.device)
    batches = torch.arange(len(x)).split(batch_size)
    mine = range(ranks.rank, len(batches), ranks.world_size)

    def look() -> dict[int, Tensor]:
        found, finite = {}, torch.ones((), dtype=torch.bool, device=device)
        with eval_mode(model):
            for number in mine:
                rows = slice(int(batches[number][0]), int(batches[number][-1]) + 1)
                images, labels = x[rows].to(device), y[rows].to(device)
                if attack is not None:
                    seeded = {} if seeds is None else {'seeds': seeds[rows].to(device)}
                    images = attack(model, images, labels, **seeded)
                    finite &= images.isfinite().all()
                found[number] = model(images).argmax(1) == labels
        if not finite:
            raise ValueError(
                'the attack made images of NaN, since the gradients of the model are NaN; check_trust says on how '
                'many.')
        return {number: right.cpu() for number, right in found.items()}

    parts = ranks.all_gather_object(ranks.run_together(look))
    found = {number: right for part in parts for number, right in part.items()}
    return torch.cat([found[number] for number in range(len(batches))])
