"""Training tasks by name."""
from typing import Any

from torch import nn

from timm_paf.tasks.adversarial import AdversarialTrainingTask, Attack
from timm_paf.tasks.mart import MARTTask
from timm_paf.tasks.trades import TRADESTask

__all__ = ['TASKS', 'create_task']

#: Classes of the training methods, by name.
TASKS: dict[str, type[AdversarialTrainingTask]] = {
    'plain': AdversarialTrainingTask, 'pgd-at': AdversarialTrainingTask, 'trades': TRADESTask, 'mart': MARTTask}


def create_task(
        name: str, model: nn.Module, attack: Attack | None = None, *, verbose: bool = False, **kwargs: Any,
) -> AdversarialTrainingTask:
    """Create a training task by name.

    Args:
        name: 'plain', 'pgd-at', 'trades' or 'mart'.
        model: Network for images in [0, 1].
        attack: Called as attack(model, x, y); returns images like x. 'plain' trains without it.
        verbose: Log the task.
        **kwargs: `options`, `criterion` and `device` as `AdversarialTrainingTask`.

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
    return TASKS[name](model, attack, verbose=verbose, **kwargs)
