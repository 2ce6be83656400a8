"""Learnable parametric activation functions and adversarially robust models for timm.

Importing this package registers its activation layers and models in timm, and has no other effect.
"""
from timm_paf import _openmp  # noqa: F401  (first, since torch reads what it sets)
from timm_paf.activations import (
    activation_summary,
    convert_activations,
    fix_parameters,
    functional,
    paf_parameters,
    project_parameters,
    register_activations,
    shape,
    shared,
)

register_activations()

from timm_paf import kernels, models  # noqa: E402  (models look activations up by name, so layers are registered first)
from timm_paf._version import __version__  # noqa: E402
from timm_paf.models import to_robustbench  # noqa: E402

__all__ = [
    '__version__', 'activation_summary', 'convert_activations', 'fix_parameters', 'functional', 'kernels', 'models',
    'paf_parameters', 'project_parameters', 'register_activations', 'shape', 'shared', 'to_robustbench',
]
