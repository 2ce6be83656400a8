"""The settings of `--torchcompile`, and a count of compiled graphs."""
import math
from typing import Protocol

from torch._dynamo.utils import counters

from timm_paf.attacks import CompileSettings

__all__ = ['CompiledGraphs', 'compile_settings', 'micro_batch_size']


class Compiled(Protocol):
    """Settings with a backend and a mode for `torch.compile`."""

    @property
    def torchcompile(self) -> str | None: ...

    @property
    def torchcompile_mode(self) -> str | None: ...


def compile_settings(config: Compiled, batch_size: int | None = None) -> CompileSettings | None:
    """Settings for compiled attacks and evaluations with batches of one size; None without --torchcompile.

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


def micro_batch_size(batch_size: int, *, world_size: int, steps: int) -> int:
    """Largest number of images that a process attacks at once, with `steps` micro-batches per update."""
    return math.ceil(math.ceil(batch_size / world_size) / steps)


class CompiledGraphs:
    """Count of the graphs that torch compiles from now on, and of the late ones: each recompilation costs time."""

    def __init__(self) -> None:
        self._before = self._now()
        self._settled: int | None = None

    @staticmethod
    def _now() -> int:
        return counters['stats']['unique_graphs']

    def settle(self) -> None:
        """Count every graph that is compiled after the first call as late."""
        if self._settled is None:
            self._settled = self._now()

    def __str__(self) -> str:
        now = self._now()
        late = 0 if self._settled is None else now - self._settled
        return f'compiled graphs: {now - self._before}, of them after the first epoch: {late}'
