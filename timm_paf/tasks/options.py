"""Settings of training tasks."""
from dataclasses import dataclass

from timm_paf.activations import BETA_BOUND
from timm_paf.activations.functional import BETA_MAX
from timm_paf.attacks.checks import check_integers

__all__ = ['TaskOptions']


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Settings of `create_task`.

    Args:
        smoothing: Label smoothing of the classification loss, from 0 (none) to below 1. Applies to soft labels too.
        trades_beta: Weight of the KL divergence in TRADES, at least 0.
        mart_beta: Weight of the KL divergence in MART, at least 0.
        beta_penalty: Weight of the sum of |beta| over the learnable betas, at least 0. Published recipe: 10.
        beta_grad_clip: Largest norm of the gradient of each beta; None for no clipping. Published recipe: 0.01.
        alpha_grad_clip: Largest norm of the gradient of each alpha; None for no clipping. Published recipe: None.
        beta_bound: Largest |beta| in training (`project_parameters`); None for the largest value of the formula.
        awp_gamma: Adversarial weight perturbation: norm of the perturbation of each weight divided by the norm of the
            weight, at least 0 (none). Published: 0.01 with PGD-AT and 0.005 with TRADES.
        awp_start_update: First update with perturbed weights, counted from 0.
        eps_warmup_updates: Number of updates in which the attack's radius and step size grow linearly to their full
            values; 0 for no warm-up.

    Raises:
        ValueError: If a setting is outside its range.
    """
    smoothing: float = 0.
    trades_beta: float = 6.
    mart_beta: float = 5.
    beta_penalty: float = 10.
    beta_grad_clip: float | None = 0.01
    alpha_grad_clip: float | None = 0.002
    beta_bound: float | None = BETA_BOUND
    awp_gamma: float = 0.
    awp_start_update: int = 0
    eps_warmup_updates: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f'smoothing = {self.smoothing}: expected a number from 0 to below 1.')
        for name in ('trades_beta', 'mart_beta', 'beta_penalty', 'awp_gamma'):
            if not 0 <= getattr(self, name) < float('inf'):
                raise ValueError(f'{name} = {getattr(self, name)}: expected a finite number >= 0.')
        for name in ('beta_grad_clip', 'alpha_grad_clip'):
            clip = getattr(self, name)
            if clip is not None and not clip > 0:
                raise ValueError(f'{name} = {clip}: expected a number > 0, or None for no clipping.')
        if self.beta_bound is not None and not 0 < self.beta_bound <= BETA_MAX:
            raise ValueError(
                f'beta_bound = {self.beta_bound}: expected a number above 0 and at most {BETA_MAX}, or None.')
        check_integers(0, awp_start_update=self.awp_start_update, eps_warmup_updates=self.eps_warmup_updates)
