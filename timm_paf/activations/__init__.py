"""Parametric activation functions: mathematics, modules, sharing, conversion of networks, shape."""
from timm_paf.activations import functional, shape
from timm_paf.activations.constraints import BETA_BOUND, check_parameters, fix_parameters, project_parameters
from timm_paf.activations.convert import (
    SHARING,
    ConversionReport,
    LeftAlone,
    Replacement,
    activation_places,
    convert_activations,
    put_activations,
)
from timm_paf.activations.modules import (
    ACTIVATIONS,
    PELU,
    REGISTERED,
    ParametricActivation,
    PELUPlus,
    PReLU0,
    PReLUPlus,
    PSiLU,
    PSoftplus,
    PSSiLU,
    PSSiLUFixed,
    ReBLU,
    Softplus,
    SSiLU,
)
from timm_paf.activations.registry import register_activations
from timm_paf.activations.sharing import (
    activation_class,
    paf_modules,
    paf_parameters,
    shared,
    shared_activations,
)
from timm_paf.activations.summary import activation_summary

__all__ = [
    'ACTIVATIONS', 'REGISTERED', 'ParametricActivation', 'PReLU0', 'PReLUPlus', 'PELU', 'PELUPlus', 'PSiLU',
    'PSoftplus', 'ReBLU', 'SSiLU', 'PSSiLUFixed', 'PSSiLU', 'Softplus', 'functional', 'shape', 'register_activations',
    'activation_class', 'paf_modules', 'paf_parameters', 'shared', 'shared_activations',
    'activation_summary', 'BETA_BOUND', 'check_parameters', 'fix_parameters', 'project_parameters',
    'ConversionReport', 'LeftAlone', 'Replacement', 'convert_activations', 'SHARING',
    'activation_places', 'put_activations',
]
