"""Training tasks by name."""
from collections.abc import Callable

import torch
from torch import nn

from timm_paf.tasks.adversarial import AdversarialTrainingTask, Attack
from timm_paf.tasks.mart import MARTTask
from timm_paf.tasks.options import TaskOptions
from timm_paf.tasks.trades import TRADESTask

__all__ = ['TASKS', 'create_task']

TASKS: dict[str, type[AdversarialTrainingTask]] = {
    'plain': AdversarialTrainingTask,
    'pgd-at': AdversarialTrainingTask,
    'trades': TRADESTask,
    'mart': MARTTask,
}


def create_task(
        name: str,
        model: nn.Module,
        attack: Attack | None = None,
        *,
        options: TaskOptions | None = None,
        criterion: nn.Module | Callable | None = None,
        device: torch.device | None = None,
        verbose: bool = False,
) -> AdversarialTrainingTask:
    """Create a training task by name.

    Args:
        name: 'plain', 'pgd-at', 'trades' or 'mart'.
        model: Network for images in [0, 1].
        attack: Called as attack(model, x, y); returns images like x. 'plain' trains without it.
        options: Settings; the defaults if None.
        criterion: Loss of (logits, target), see the class of the task.
        device: Device of the model; by default the device of its first parameter.
        verbose: Log the task.

    Returns:
        A `timm.task.TrainingTask`: task(input, target) -> {'loss', 'output', …}.

    Raises:
        ValueError: If the name is unknown, the attack is missing, or a setting does not fit the task.

    Example:
        >>> task = create_task('trades', model, PGD(eps='8/255', loss='kl'), options=TaskOptions(awp_gamma=0.005))
    """
    if name not in TASKS:
        raise ValueError(f'task {name!r}: expected one of {", ".join(TASKS)}.')
    if name == 'plain':
        attack = None
    elif attack is None:
        raise ValueError(f"task {name!r} trains on attacked images, but attack is None; pass one, or use task 'plain'.")
    return TASKS[name](model, attack, options=options, criterion=criterion, device=device, verbose=verbose)
