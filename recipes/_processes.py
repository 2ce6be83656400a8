"""The processes of a run: one, or several under torchrun."""
import contextlib
import dataclasses
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional, TypeVar

import torch
from _cli import RunFailed
from _settings import choose_device, existing_folder
from timm.utils.distributed import init_distributed_device_so, is_distributed_env, world_info_from_env
from torch import Tensor, distributed

__all__ = ['Processes', 'StopSignals', 'lost_contact', 'signal_name', 'start_processes']

T = TypeVar('T')

# what gloo and NCCL say when the other end is gone; neither has an exception of its own for it in every version
LOST = ('connection closed by peer', 'connection reset', 'gloo', 'nccl', 'broken pipe', 'tcpstore')

# the process of torchrun that started this one, and what stands for its end beside the numbers of signals
AGENT = os.getppid() if 'TORCHELASTIC_RUN_ID' in os.environ else None
ABANDONED = 1000


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Args:
        device: Where this one computes.
        rank: Its number; the first one writes.
        local_rank: Its number on its machine.
        world_size: How many there are.
        nodes: On how many machines.
    """
    device: torch.device
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    nodes: int = 1

    @property
    def primary(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1

    def highest(self, *values: int) -> list[int]:
        """The largest of all processes' values, place by place."""
        if not self.several:
            return list(values)
        tensor = torch.tensor(values, device=self.device)
        distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
        return tensor.tolist()

    def total(self, values: Tensor) -> Tensor:
        """The sum of all processes' tensors."""
        if self.several:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def gathered(self, value: Any) -> list[Any]:
        """All processes' values by rank, in the first one; an empty list in the others."""
        if not self.several:
            return [value]
        values: Optional[list[Any]] = [None] * self.world_size if self.primary else None
        distributed.gather_object(value, values)
        return values or []

    def agreed(self, decide: Callable[[], T]) -> T:
        """What the first process decides, or the error that it meets, in all of them."""
        if not self.several:
            return decide()
        outcome: list[Any] = [None, None]
        if self.primary:
            try:
                outcome[0] = decide()
            except (ValueError, OSError) as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def see_one_folder(self, folder: Path) -> bool:
        """Whether what the first process writes into its folder is seen in that of each."""
        if not self.several:
            return True
        there = existing_folder(folder)
        with contextlib.ExitStack() as stack:
            name = self.agreed(lambda: Path(stack.enter_context(tempfile.NamedTemporaryFile(dir=there)).name).name)
            return not self.highest(not (there / name).exists())[0]

    def share(self, count: int) -> slice:
        """Which of `count` images this process looks at; the shares are disjoint and complete."""
        return slice(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the block, then the first of each other machine, then the rest.

        So who comes first fetches and the others find, whether machines share folders or not.
        """
        turn = 0 if self.primary else 1 if not self.local_rank else 2
        for _ in range(turn if self.several else 0):
            distributed.barrier()
        yield
        for _ in range(2 - turn if self.several else 0):
            distributed.barrier()

    def close(self) -> None:
        """Leave the group of processes; each is on its own from here."""
        if self.several and distributed.is_initialized():
            distributed.destroy_process_group()


def start_processes(name: Optional[str]) -> Processes:
    """Join the other processes that torchrun (or SLURM) started, if it did.

    Args:
        name: Device asked for; None takes a GPU for each process if there are any.

    Raises:
        ValueError: If the device is not to be had.
    """
    if not is_distributed_env():
        return Processes(choose_device(name))
    kind = (name or ('cuda' if torch.cuda.is_available() else 'cpu')).split(':')[0]
    local_rank = world_info_from_env()[0]
    choose_device(kind if kind == 'cpu' else f'{kind}:{local_rank}')
    found = init_distributed_device_so(device=kind)
    alone = Processes(torch.device(found['device']), found['global_rank'], found['local_rank'], found['world_size'])
    first_ones = alone.total(torch.tensor(int(alone.local_rank == 0), device=alone.device))
    return dataclasses.replace(alone, nodes=int(first_ones))


@contextlib.contextmanager
def lost_contact(processes: Processes, advice: str) -> Iterator[None]:
    """Turn the error of a process that has lost another one into RunFailed.

    Args:
        processes: Those of the run.
        advice: What to do then; the end of the message.
    """
    try:
        yield
    except (ValueError, TypeError, OSError):
        processes.close()  # a process that ends inside the group may be aborted
        raise
    except RuntimeError as error:
        text = ' '.join(str(error).split())
        if not processes.several or not any(word in text.lower() for word in LOST):
            raise
        raise RunFailed(
            f'process {processes.rank} of {processes.world_size} has lost contact with another one, which has ended or '
            f'cannot be reached ({text[-120:]}); {advice}') from error


class StopSignals:
    """SIGTERM and SIGINT ask for an end at the next opportunity; a second SIGINT ends at once. Used as a context.

    So does the end of the torchrun that started this process: nobody else would tell the other nodes of it.
    """

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[int, Any] = {}

    @property
    def received(self) -> int:
        """Number of the signal that came, or `ABANDONED`; 0 for none."""
        if not self._received and AGENT not in (None, os.getppid()):
            self._received = ABANDONED
        return self._received

    @received.setter
    def received(self, number: int) -> None:
        self._received = number

    def __enter__(self) -> 'StopSignals':
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number


def signal_name(number: int) -> str:
    """A signal as people write it."""
    if number == ABANDONED:
        return 'the end of torchrun on one of the nodes'
    return signal.Signals(number).name

