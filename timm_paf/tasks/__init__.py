"""Training tasks: attack, loss, and what they return to a training loop."""
from .adversarial import AdversarialTrainingTask, BatchLoss, learnable_betas
from .factory import TASKS, create_task
from .groups import paf_parameter_groups
from .losses import boosted_cross_entropy, divergence, mart_loss, trades_loss
from .mart import MARTTask
from .options import TaskOptions
from .perturbation import WeightPerturbation
from .trades import TRADESTask

__all__ = [
    'TASKS', 'create_task', 'TaskOptions', 'AdversarialTrainingTask', 'TRADESTask', 'MARTTask', 'BatchLoss',
    'WeightPerturbation', 'boosted_cross_entropy', 'divergence', 'mart_loss', 'trades_loss', 'paf_parameter_groups',
    'learnable_betas',
]
