"""Robustness measurement: accuracy under attacks and corruptions, trust checks, and the report with all results."""
from timm_paf._versions import library_versions
from timm_paf.evaluation.accuracy import Accuracy, Measurement
from timm_paf.evaluation.correct import Example, adversarial_examples
from timm_paf.evaluation.corruptions import (
    BENCHMARK_CORRUPTIONS,
    CorruptionArchive,
    CorruptionReport,
    corruption_accuracy,
)
from timm_paf.evaluation.curves import (
    ClassAccuracy,
    CurvePoint,
    RobustnessCurve,
    accuracy_by_class,
    curve_radius,
    robustness_curve,
)
from timm_paf.evaluation.report import RobustnessReport
from timm_paf.evaluation.robustbench import robustbench_info, robustbench_obstacles
from timm_paf.evaluation.robustness import accuracy_under_attack, check_state, clean_accuracy, evaluate_robustness
from timm_paf.evaluation.trust_checks import TrustCheck, TrustReport, check_trust

__all__ = [
    'Accuracy', 'Measurement', 'RobustnessReport', 'accuracy_under_attack', 'check_state', 'clean_accuracy',
    'evaluate_robustness', 'library_versions', 'TrustCheck', 'TrustReport', 'check_trust', 'CurvePoint',
    'RobustnessCurve', 'robustness_curve', 'curve_radius', 'ClassAccuracy', 'accuracy_by_class',
    'BENCHMARK_CORRUPTIONS', 'CorruptionArchive', 'CorruptionReport', 'corruption_accuracy', 'Example',
    'adversarial_examples', 'robustbench_info', 'robustbench_obstacles',
]
