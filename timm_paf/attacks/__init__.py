"""Attacks on classifiers of images in [0, 1]: (model, x, y) -> x_adv."""
from timm_paf._normalized import Normalized
from timm_paf.attacks.autoattack import Expected, autoattack, autoattack_passes, check_state, rehearse_autoattack
from timm_paf.attacks.autoattack_result import AutoAttackResult, ComponentRun, pointwise_worst_case, write_verdicts
from timm_paf.attacks.autoattack_state import COMPONENTS
from timm_paf.attacks.balls import BALLS, Ball
from timm_paf.attacks.capture import release_graphs
from timm_paf.attacks.checks import PixelCheck, check_images, check_pixels
from timm_paf.attacks.compiled import CompiledModel, CompileSettings
from timm_paf.attacks.losses import LOSSES, kl_divergence
from timm_paf.attacks.pgd import FGSM, PGD
from timm_paf.attacks.state import attack_mode, eval_mode, frozen_parameters, still_statistics
from timm_paf.attacks.steps import STEP_RULES
from timm_paf.attacks.threat import ThreatModel, parse_eps

__all__ = [
    'AutoAttackResult', 'ComponentRun', 'Expected', 'autoattack', 'autoattack_passes', 'check_images', 'check_pixels',
    'check_state', 'rehearse_autoattack', 'pointwise_worst_case', 'write_verdicts', 'BALLS', 'Ball', 'COMPONENTS',
    'CompiledModel', 'CompileSettings', 'LOSSES', 'kl_divergence', 'Normalized', 'PixelCheck', 'FGSM', 'PGD',
    'attack_mode', 'eval_mode', 'frozen_parameters', 'release_graphs', 'still_statistics', 'STEP_RULES', 'ThreatModel',
    'parse_eps',
]
