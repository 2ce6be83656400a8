"""How a run computes: precision, memory format, CUDA graphs, compilation."""
import dataclasses
from typing import TYPE_CHECKING

import torch

from timm_paf._dtypes import uses_tf32
from timm_paf.attacks import CompileSettings
from timm_paf.engine.train_config import TrainConfig
from timm_paf.engine.validate_config import ValidateConfig

if TYPE_CHECKING:
    from timm_paf.engine.components import Run

__all__ = ['compile_settings', 'convolution_precision', 'describe_execution', 'with_device_defaults']


def with_device_defaults(config: TrainConfig, device: torch.device) -> TrainConfig:
    """The settings, with --amp and --channels-last as the device runs fastest, where they are not set."""
    gpu = device.type == 'cuda'
    # a GPU without arithmetic in bfloat16 emulates it, which is slower than float32
    half = gpu and (config.amp_dtype == 'float16' or torch.cuda.is_bf16_supported(including_emulation=False))
    return dataclasses.replace(
        config, amp=half if config.amp is None else config.amp,
        channels_last=gpu if config.channels_last is None else config.channels_last)


def describe_execution(run: 'Run') -> str:
    """Precision, memory format, capture, compilation and optimizer of a run in one line."""
    config, device = run.config, run.processes.device
    parts = [
        f'computes in {f"mixed precision with {config.amp_dtype}" if config.amp else "float32"}',
        f'memory format {"channels_last" if config.channels_last else "contiguous"}']
    if device.type == 'cuda':
        parts.append(f'float32 convolutions, as in the final measurement, in {convolution_precision(device)}')
        graphs = config.capture == 'auto' and config.torchcompile is None
        parts.append('the attack as CUDA graphs' if graphs else 'the attack without CUDA graphs')
    if config.torchcompile is not None:
        parts.append(f'compiled by {config.torchcompile}')
    fused = ', fused' if run.optimizer.defaults.get('fused') else ''
    return f'{"; ".join(parts)}; optimizer {config.opt} ({type(run.optimizer).__name__}{fused})'


def convolution_precision(device: torch.device) -> str:
    """What a device computes convolutions of float32 tensors in: TF32 or float32."""
    able = device.type == 'cuda' and torch.cuda.get_device_capability(device) >= (8, 0)
    return 'TF32' if able and uses_tf32() else 'float32'


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
