"""Fused kernels of the activations: the same functions in one pass over memory. They are optional."""
from timm_paf.activations.dispatch import install_kernels
from timm_paf.kernels.choice import choose, use
from timm_paf.kernels.norm import batch_norm_act, runs_as_written

__all__ = ['batch_norm_act', 'runs_as_written', 'use']

install_kernels(choose)
