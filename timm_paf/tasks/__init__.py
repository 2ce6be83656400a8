"""Training tasks: attack, loss, and what they return to a training loop."""
from .adversarial import AdversarialTrainingTask, learnable_betas

__all__ = ['AdversarialTrainingTask', 'learnable_betas']
