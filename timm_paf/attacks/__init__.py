"""Attacks on classifiers of images in [0, 1]: (model, x, y) -> x_adv."""
from .autoattack import AutoAttackResult, autoattack, check_images
from .autoattack_result import ComponentRun, pointwise_worst_case, write_verdicts
from .autoattack_resume import check_state
from .balls import BALLS, Ball
from .compiled import CompiledModel, CompileSettings
from .losses import LOSSES
from .normalized import Normalized
from .pgd import FGSM, PGD
from .state import attack_mode, eval_mode, frozen_parameters, still_statistics
from .steps import STEP_RULES
from .threat import ThreatModel, parse_eps

__all__ = [
    'AutoAttackResult', 'ComponentRun', 'autoattack', 'check_images', 'check_state', 'pointwise_worst_case',
    'write_verdicts', 'BALLS', 'Ball', 'CompiledModel', 'CompileSettings', 'LOSSES', 'Normalized', 'FGSM', 'PGD',
    'attack_mode', 'eval_mode', 'frozen_parameters', 'still_statistics', 'STEP_RULES', 'ThreatModel', 'parse_eps',
]
