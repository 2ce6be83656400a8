"""Robustness measurement: counts of images under attacks, signs of a false number, and the report that holds them."""
from .corruptions import BENCHMARK_CORRUPTIONS, CorruptionArchive, CorruptionReport, corruption_accuracy
from .curves import (
    ClassAccuracy,
    CurvePoint,
    RobustnessCurve,
    accuracy_by_class,
    curve_radius,
    robustness_curve,
)
from .examples import Example, adversarial_examples
from .page import report_page, report_sections
from .report import Accuracy, Measurement, RobustnessReport, file_sha256, library_versions
from .robustbench import robustbench_info, robustbench_obstacles
from .robustness import accuracy_under_attack, clean_accuracy, evaluate_robustness
from .trust import TrustCheck, TrustReport, check_trust

__all__ = [
    'Accuracy', 'Measurement', 'RobustnessReport', 'accuracy_under_attack', 'clean_accuracy', 'evaluate_robustness',
    'file_sha256', 'library_versions', 'TrustCheck', 'TrustReport', 'check_trust', 'CurvePoint', 'RobustnessCurve',
    'robustness_curve', 'curve_radius', 'ClassAccuracy', 'accuracy_by_class', 'BENCHMARK_CORRUPTIONS',
    'CorruptionArchive', 'CorruptionReport', 'corruption_accuracy', 'Example', 'adversarial_examples', 'report_page',
    'report_sections', 'robustbench_info', 'robustbench_obstacles',
]
