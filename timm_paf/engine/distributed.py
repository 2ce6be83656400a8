"""Processes of a run: one, or several under torchrun; their devices, signals and failures."""
import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from timm.utils.distributed import init_distributed_device_so, is_distributed_env, world_info_from_env

from timm_paf._distributed import Processes
from timm_paf.engine.cli import RunFailed

__all__ = ['StopSignals', 'peer_failure', 'signal_name', 'start_processes']

# texts of gloo and NCCL when the other process is gone; neither has an exception of its own for it in every version
LOST = ('connection closed by peer', 'connection reset', 'gloo', 'nccl', 'broken pipe', 'tcpstore')

# the torchrun that started this process, and a number for its end in addition to the numbers of signals
AGENT = os.getppid() if 'TORCHELASTIC_RUN_ID' in os.environ else None
ABANDONED = 1000


def start_processes(name: str | None) -> Processes:
    """Join the other processes if torchrun or SLURM started several.

    The device is `name`, or a GPU (one per process) if there is one, else the CPU; ValueError if it is not available.
    """
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    kind, several = name.split(':')[0], is_distributed_env()
    try:
        device = torch.device(f'{kind}:{world_info_from_env()[0]}' if several and kind != 'cpu' else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(f'--device = {name}: not available ({reason}); try --device cpu.') from None
    if not several:
        return Processes(device)
    found = init_distributed_device_so(device=kind)
    processes = Processes(
        torch.device(found['device']), found['global_rank'], found['local_rank'], found['world_size'])
    nodes = processes.all_reduce_sum(torch.tensor(int(processes.local_rank == 0), device=processes.device))
    return dataclasses.replace(processes, nodes=int(nodes))


@contextlib.contextmanager
def peer_failure(processes: Processes, advice: str) -> Iterator[None]:
    """Raise RunFailed, with `advice` at its end, where this process has lost another one.

    Any other error makes this process leave the process group.
    """
    try:
        yield
    except (ValueError, TypeError, OSError):
        processes.close()  # torch may abort a process that ends inside the group
        raise
    except RuntimeError as error:
        text = ' '.join(str(error).split())
        if not processes.is_distributed or not any(word in text.lower() for word in LOST):
            raise
        raise RunFailed(
            f'process {processes.rank} of {processes.world_size} has lost contact with another process, which has '
            f'ended or cannot be reached ({text[-120:]}); {advice}') from error


class StopSignals:
    """Note SIGTERM and SIGINT, so that a run can save and stop; a second SIGINT interrupts at once.

    Used as a context, which may be entered again inside. The end of the torchrun that started this process counts as a
    signal: nothing else would stop the other nodes.

    Args:
        enabled: If not, the context changes nothing.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self._received = self._depth = 0
        self._before: dict[int, Any] = {}  # handlers

    @property
    def received(self) -> int:
        """Number of the received signal, or `ABANDONED`; 0 for none."""
        if not self._received and AGENT not in (None, os.getppid()):
            self._received = ABANDONED
        return self._received

    @received.setter
    def received(self, number: int) -> None:
        self._received = number

    def __enter__(self) -> 'StopSignals':
        self._depth += 1
        # Python allows no handlers in other threads
        if self.enabled and self._depth == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        while self._before and not self._depth:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: object) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number


def signal_name(number: int) -> str:
    """Name of a signal, such as SIGTERM."""
    return 'the end of torchrun on one of the nodes' if number == ABANDONED else signal.Signals(number).name
