"""Robustness measurement: counts of images under attacks, and the report that holds them."""
from .report import Accuracy, Measurement, RobustnessReport, file_sha256, library_versions
from .robustness import accuracy_under_attack, clean_accuracy, evaluate_robustness
from .trust import TrustCheck, TrustReport, check_trust

__all__ = [
    'Accuracy', 'Measurement', 'RobustnessReport', 'accuracy_under_attack', 'clean_accuracy', 'evaluate_robustness',
    'file_sha256', 'library_versions', 'TrustCheck', 'TrustReport', 'check_trust',
]
