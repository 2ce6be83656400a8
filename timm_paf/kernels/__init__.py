"""Fused kernels of the activations: the same functions in one pass over memory. They are optional."""
from timm_paf.activations.dispatch import install_kernels
from timm_paf.kernels.choice import choose, use
from timm_paf.kernels.norm import RecomputedBatchNorm2d, recompute_batch_norm

__all__ = ['RecomputedBatchNorm2d', 'recompute_batch_norm', 'use']

install_kernels(choose)
