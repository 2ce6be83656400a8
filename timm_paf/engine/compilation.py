"""What --torchcompile stands for, and how much was compiled."""
import math
from typing import Any

from torch._dynamo.utils import counters

from timm_paf.attacks import CompileSettings

__all__ = ['CompiledGraphs', 'compile_settings', 'piece_size']


def compile_settings(config: Any, batch_size: int | None = None) -> CompileSettings | None:
    """How attacks and evaluations are compiled, for batches of a size; None without --torchcompile.

    Raises:
        ValueError: If torch knows no such backend or mode.
    """
    if config.torchcompile is None:
        if config.torchcompile_mode is not None:
            raise ValueError(
                f'--torchcompile-mode = {config.torchcompile_mode}: give a backend as well, --torchcompile inductor.')
        return None
    try:
        return CompileSettings(backend=config.torchcompile, mode=config.torchcompile_mode, batch_size=batch_size)
    except ValueError as error:
        raise ValueError(f'--torchcompile {config.torchcompile}: {error}') from None


def piece_size(batch_size: int, *, world_size: int, pieces: int) -> int:
    """The most images that a process attacks at once."""
    return math.ceil(math.ceil(batch_size / world_size) / pieces)


class CompiledGraphs:
    """How many graphs torch has compiled since this was made, and how many of them late: a recompilation costs time."""

    def __init__(self) -> None:
        self.before = self._now()
        self.settled: int | None = None

    @staticmethod
    def _now() -> int:
        return counters['stats']['unique_graphs']

    def settle(self) -> None:
        """From the first call on, nothing is expected to be compiled."""
        if self.settled is None:
            self.settled = self._now()

    def __str__(self) -> str:
        late = self._now() - (self._now() if self.settled is None else self.settled)
        return f'compiled graphs: {self._now() - self.before}, of them after the first epoch: {late}'
