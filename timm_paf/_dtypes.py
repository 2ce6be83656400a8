"""The precision of computations on half-precision tensors."""
import torch

__all__ = ['compute_dtype']


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32
