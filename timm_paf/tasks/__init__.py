"""Adversarial training as timm tasks: attack a batch, compute the loss, return both to a training loop."""
from timm_paf.tasks.adversarial import AdversarialTrainingTask, BatchLoss, learnable_betas
from timm_paf.tasks.factory import TASKS, create_task
from timm_paf.tasks.groups import paf_parameter_groups
from timm_paf.tasks.mart import MARTTask, boosted_cross_entropy, mart_loss
from timm_paf.tasks.options import TaskOptions
from timm_paf.tasks.perturbation import WeightPerturbation
from timm_paf.tasks.trades import TRADESTask, trades_loss

__all__ = [
    'TASKS', 'create_task', 'TaskOptions', 'AdversarialTrainingTask', 'TRADESTask', 'MARTTask', 'BatchLoss',
    'WeightPerturbation', 'boosted_cross_entropy', 'mart_loss', 'trades_loss', 'paf_parameter_groups',
    'learnable_betas',
]
