"""The processes of a run: one, or several under torchrun."""
import contextlib
import dataclasses
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timm.utils.distributed import init_distributed_device_so, is_distributed_env, world_info_from_env

from timm_paf._distributed import Processes
from timm_paf.engine.cli import RunFailed
from timm_paf.engine.settings import choose_device, existing_folder

__all__ = ['Processes', 'StopSignals', 'peer_failure', 'shares_folder', 'signal_name', 'start_processes']

# what gloo and NCCL say when the other end is gone; neither has an exception of its own for it in every version
LOST = ('connection closed by peer', 'connection reset', 'gloo', 'nccl', 'broken pipe', 'tcpstore')

# the process of torchrun that started this one, and what stands for its end beside the numbers of signals
AGENT = os.getppid() if 'TORCHELASTIC_RUN_ID' in os.environ else None
ABANDONED = 1000


def start_processes(name: str | None) -> Processes:
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
    first_ones = alone.all_reduce_sum(torch.tensor(int(alone.local_rank == 0), device=alone.device))
    return dataclasses.replace(alone, nodes=int(first_ones))


def shares_folder(processes: Processes, folder: Path) -> bool:
    """Whether all processes see what process 0 writes into a folder."""
    if not processes.is_distributed:
        return True
    there = existing_folder(folder)
    with contextlib.ExitStack() as stack:
        name = processes.broadcast_object(
            lambda: Path(stack.enter_context(tempfile.NamedTemporaryFile(dir=there)).name).name)
        return not processes.all_reduce_max(not (there / name).exists())[0]


@contextlib.contextmanager
def peer_failure(processes: Processes, advice: str) -> Iterator[None]:
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
        if not processes.is_distributed or not any(word in text.lower() for word in LOST):
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

