"""The processes of a run: one, or several under torchrun. Attacks, evaluation and engine share this one class."""
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

__all__ = ['Processes']

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Args:
        device: Where this process computes.
        rank: Its number, from 0; process 0 writes files and messages.
        local_rank: Its number on its machine, from 0.
        world_size: Number of processes.
        nodes: Number of machines.
        group: The process group of torch that exchanges objects; None for the default group.
    """
    device: torch.device
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    nodes: int = 1
    group: Any = None

    @classmethod
    def from_rank(cls, rank: int, world_size: int, *, device: torch.device) -> 'Processes':
        """The processes of the default process group of torch.

        Args:
            rank: Number of this process.
            world_size: Number of processes; 1 needs no process group.
            device: Where this process computes.

        Raises:
            ValueError: If there is no process group, or it has other numbers.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f'rank = {rank}, world_size = {world_size}: expected 0 <= rank < world_size.')
        if world_size > 1:
            if not (distributed.is_available() and distributed.is_initialized()):
                raise ValueError(
                    f'world_size = {world_size} without a process group; start with torchrun and call '
                    f'torch.distributed.init_process_group first.')
            actual = distributed.get_rank(), distributed.get_world_size()
            if actual != (rank, world_size):
                raise ValueError(f'rank {rank} of {world_size}: the process group has rank {actual[0]} of {actual[1]}.')
        return cls(device, rank=rank, world_size=world_size)

    @property
    def is_primary(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1

    def all_reduce_max(self, *values: int) -> list[int]:
        """The largest value over all processes, for each position."""
        if not self.is_distributed:
            return list(values)
        tensor = torch.tensor(values, device=self.device)
        distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
        return tensor.tolist()

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum of the tensors of all processes."""
        if self.is_distributed:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all processes by rank, in every process."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def broadcast_object(self, decide: Callable[[], T]) -> T:
        """Call `decide` in process 0 and return its result, or raise its error, in every process."""
        if not self.is_distributed:
            return decide()
        outcome: list[Any] = [None, None]
        if self.is_primary:
            try:
                outcome[0] = decide()
            except (ValueError, OSError) as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome, group=self.group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def run_together(self, work: Callable[[], T]) -> T:
        """Call `work` in every process; an error in any of them is raised in all, so that none waits for another.

        Raises:
            ValueError: Or OSError: this process's error, or the message of another process's error.
        """
        error: ValueError | OSError | None = None
        try:
            result = work()
        except (ValueError, OSError) as caught:
            error = caught
        messages = self.all_gather_object(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise ValueError(f'rank {rank}: {message}')
        return result

    def share(self, count: int) -> slice:
        """The part of `count` items that belongs to this process; the parts are disjoint and complete."""
        return slice(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    @contextlib.contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Process 0 runs the block first, then the first process of each other machine, then the rest.

        The first ones download or build files, and the others find them, whether machines share folders or not.
        """
        turn = 0 if self.is_primary else 1 if not self.local_rank else 2
        for _ in range(turn if self.is_distributed else 0):
            distributed.barrier(group=self.group)
        yield
        for _ in range(2 - turn if self.is_distributed else 0):
            distributed.barrier(group=self.group)

    @contextlib.contextmanager
    def patient(self) -> Iterator['Processes']:
        """These processes with a group of their own on the CPU, in which one may wait hours for another."""
        if not self.is_distributed:
            yield self
            return
        group = distributed.new_group(backend='gloo', timeout=timedelta(days=30))
        try:
            yield dataclasses.replace(self, group=group)
        finally:
            distributed.destroy_process_group(group)

    def close(self) -> None:
        """Leave the process group; from here on each process is on its own."""
        if self.is_distributed and distributed.is_initialized():
            distributed.destroy_process_group()
