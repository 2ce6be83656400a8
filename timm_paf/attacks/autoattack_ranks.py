"""Processes that share one measurement."""
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

__all__ = ['Ranks']

T = TypeVar('T')


class Ranks:
    """This process among those of `torch.distributed`; used as a context.

    Args:
        rank: Its number.
        world_size: How many there are; 1 needs no process group.

    Raises:
        ValueError: If these are not the numbers of the process group.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f'rank = {rank}, world_size = {world_size}: expected 0 <= rank < world_size.')
        if world_size > 1:
            if not (distributed.is_available() and distributed.is_initialized()):
                raise ValueError(
                    f'world_size = {world_size} without a process group; start with torchrun and call '
                    f'torch.distributed.init_process_group first.')
            actual = distributed.get_rank(), distributed.get_world_size()
            if actual != (rank, world_size):
                raise ValueError(f'rank {rank} of {world_size}, and the process group says {actual[0]} of {actual[1]}.')
        self.rank, self.world_size = rank, world_size
        self.group: Any | None = None

    def __enter__(self) -> 'Ranks':
        if self.world_size > 1:
            # one of their own: what is exchanged is on the CPU, and a rank may wait for another's batch for hours
            self.group = distributed.new_group(backend='gloo', timeout=timedelta(days=30))
        return self

    def __exit__(self, *exception: object) -> None:
        if self.group is not None:
            distributed.destroy_process_group(self.group)

    def gather(self, value: T) -> list[T]:
        """Everyone's value, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns here, if it raises no ValueError or OSError on any rank.

        Raises:
            ValueError: As `agree`.
        """
        error: ValueError | OSError | None = None
        try:
            result = work()
        except (ValueError, OSError) as caught:
            error = caught
        self.agree(error)
        return result

    def agree(self, error: 'ValueError | OSError | None') -> None:
        """Raise where any rank has an error, so that none waits for one that has left.

        Raises:
            ValueError: Or OSError: one's own error, or what another rank says.
        """
        texts = self.gather(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, text in enumerate(texts):
            if text is not None:
                raise ValueError(f'rank {rank}: {text}')
