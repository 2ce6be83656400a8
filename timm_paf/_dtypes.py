"""The precision of computations."""
import torch

__all__ = ['compute_dtype', 'uses_tf32']


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def uses_tf32() -> bool:
    """Whether a GPU that can do so computes convolutions of float32 tensors in TF32, as torch does by default."""
    convolutions = getattr(torch.backends.cudnn, 'conv', None)  # torch.backends.cudnn.allow_tf32 before torch 2.9
    return torch.backends.cudnn.allow_tf32 if convolutions is None else convolutions.fp32_precision == 'tf32'
