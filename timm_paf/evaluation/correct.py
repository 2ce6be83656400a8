"""Predictions on clean and attacked images: correct masks, shared by processes, and examples for the report page."""
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf.attacks import eval_mode
from timm_paf.attacks.autoattack_state import BatchResult, load_or_compute

__all__ = ['Attack', 'Example', 'adversarial_examples', 'correct_mask', 'map_in_turn', 'model_device']

Attack = Callable[..., Tensor]
Item = TypeVar('Item')
Result = TypeVar('Result')


def model_device(model: nn.Module, default: torch.device) -> torch.device:
    """The device of the model's first parameter; `default` for a model without parameters."""
    return next((p.device for p in model.parameters()), default)


def map_in_turn(processes: Processes, items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Results of `work` for all items, in every process; the processes take items in turn.

    If `work` raises ValueError or OSError in any process, so does every process.
    """
    n = processes.world_size
    parts = processes.all_gather_object(
        processes.run_together(lambda: [work(item) for item in items[processes.rank::n]]))
    return [parts[number % n][number // n] for number in range(len(items))]


@torch.no_grad()
def correct_mask(
        model: nn.Module, x: Tensor, y: Tensor, *, attack: Attack | None = None, batch_size: int,
        device: torch.device | None = None, seeds: Tensor | None = None, processes: Processes | None = None,
        progress: Callable[[int, int, float], None] | None = None, folder: Path | None = None, part: int = 0,
        rows: Tensor | None = None,
) -> Tensor:
    """Which images the model classifies correctly, clean or attacked, in eval mode: (N,) bool on the CPU.

    Arguments and errors are those of `accuracy_under_attack`. `processes` share the images and receive the whole mask.
    Batches, and with them rounding, do not depend on the number of processes. After each batch, `progress` gets the
    numbers of images done and of correct ones, and the seconds spent, of this process. `folder` keeps finished batches
    under the number `part`, and an interrupted call resumes from them. If `rows` are given, only these images are
    attacked, and the others count as wrong.
    """
    rows = torch.arange(len(x)) if rows is None else rows
    device, done, right, seconds = device or model_device(model, x.device), 0, 0, 0.

    def correct_of(numbers: tuple[int, Tensor]) -> Tensor:
        nonlocal done, right, seconds
        result = load_or_compute(folder, (part, numbers[0]), numbers[1], compute)
        correct = ~torch.isin(numbers[1], result.broken)
        done, right, seconds = done + len(correct), right + int(correct.sum()), seconds + result.seconds
        if progress is not None:
            progress(done, right, seconds)
        return correct

    def compute(numbers: Tensor) -> BatchResult:
        started = time.monotonic()
        images, labels = x[numbers].to(device), y[numbers].to(device)
        if attack is not None:
            images = attack(model, images, labels, **({} if seeds is None else {'seeds': seeds[numbers].to(device)}))
            if not images.isfinite().all():
                raise ValueError(
                    'the attack returned images with NaN, because gradients of the model are NaN; check_trust counts '
                    'the affected images.')
        wrong = numbers[(model(images).argmax(1) != labels).cpu()]
        return BatchResult(
            attacked=numbers, broken=wrong, images=torch.empty(0), seconds=time.monotonic() - started)

    mask = torch.zeros(len(x), dtype=torch.bool)
    batches = list(enumerate(rows.split(batch_size))) if len(rows) else []
    with eval_mode(model):
        found = map_in_turn(processes or Processes(device), batches, correct_of)
    for (_, numbers), correct in zip(batches, found, strict=True):
        mask[numbers] = correct
    return mask


@dataclass(frozen=True)
class Example:
    """An image and its attacked version."""
    original: Tensor  #: (C, H, W) in [0, 1], on the CPU.
    adversarial: Tensor  #: The attacked image, like `original`.
    label: int  #: Its class.
    clean_prediction: int  #: Predicted class of the original.
    prediction: int  #: Predicted class of the attacked image.
    attack: str  #: Name of the attack, with norm and eps.

    @property
    def perturbation(self) -> Tensor:
        """The change of each pixel as an image: grey for none, stretched so that the largest is black or white."""
        change = self.adversarial - self.original
        return 0.5 + change / (2 * change.abs().max().clamp(min=1e-12))


@torch.no_grad()
def adversarial_examples(
        model: nn.Module, x: Tensor, y: Tensor, *, attack: Attack, title: str, n: int = 12,
        device: torch.device | None = None, seeds: Tensor | None = None,
) -> tuple[Example, ...]:
    """The first n images with their versions under the attack called `title`; arguments as `accuracy_under_attack`."""
    device = device or model_device(model, x.device)
    x, y = x[:n].to(device), y[:n].to(device)
    with eval_mode(model):
        x_adv = attack(model, x, y, **({} if seeds is None else {'seeds': seeds[:n].to(device)}))
        clean, attacked = model(x).argmax(1).tolist(), model(x_adv).argmax(1).tolist()
    return tuple(
        Example(original, adversarial, label, before, after, title) for original, adversarial, label, before, after in
        zip(x.float().cpu(), x_adv.float().cpu(), y.tolist(), clean, attacked, strict=True))
