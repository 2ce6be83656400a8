"""The settings of `--torchcompile`, and a count of compiled graphs."""
from torch._dynamo.utils import counters

from timm_paf.attacks import CompileSettings
from timm_paf.engine.train_config import TrainConfig
from timm_paf.engine.validate_config import ValidateConfig

__all__ = ['compile_settings', 'compiled_graphs']


def compile_settings(config: TrainConfig | ValidateConfig, batch_size: int | None = None) -> CompileSettings | None:
    """Settings for compiled attacks and evaluations with batches of one size; None without --torchcompile."""
    backend, mode = config.torchcompile, config.torchcompile_mode
    if backend is None:
        if mode is not None:
            raise ValueError(f'--torchcompile-mode = {mode}: give a backend as well, --torchcompile inductor.')
        return None
    try:
        return CompileSettings(backend=backend, mode=mode, batch_size=batch_size)
    except ValueError as error:
        raise ValueError(f'--torchcompile {backend}: {error}') from None


def compiled_graphs() -> int:
    """Number of graphs that torch has compiled in this process."""
    return counters['stats']['unique_graphs']
