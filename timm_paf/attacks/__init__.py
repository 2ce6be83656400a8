"""Attacks on classifiers of images in [0, 1]: (model, x, y) -> x_adv."""
from .autoattack import AutoAttackResult, autoattack, check_images
from .autoattack_result import ComponentRun, pointwise_worst_case, write_verdicts
from .balls import BALLS, Ball
from .pgd import LOSSES, PGD
from .state import eval_mode, frozen_parameters
from .threat import ThreatModel, parse_eps

__all__ = [
    'AutoAttackResult', 'ComponentRun', 'autoattack', 'check_images', 'pointwise_worst_case', 'write_verdicts',
    'BALLS', 'Ball', 'LOSSES', 'PGD', 'eval_mode', 'frozen_parameters', 'ThreatModel', 'parse_eps',
]
