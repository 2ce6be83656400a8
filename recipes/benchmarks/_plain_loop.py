"""Plain training loop for comparison, which trains as the code of the authors of arXiv 2110.05626 does."""
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from timm_paf.activations import ACTIVATIONS, ParametricActivation
from timm_paf.data import Batch

STEPS, EPS, STEP_SIZE = 10, 0.2, 0.05


def _sigmoid_shifted(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return x * (torch.sigmoid(a * x) - b) / (1 - b)


# formulas as published modules write them, and values of alpha and beta as after training
FORMULAS: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    'prelu0': (lambda x, a: torch.where(x > 0, x, a * x), (0.1,)),
    'preluplus': (lambda x, a: torch.where(x > 0, a * x, 0.), (1.2,)),
    'pelu': (lambda x, a: torch.where(x > 0, x, a * (torch.exp(x) - 1)), (1.2,)),
    'peluplus': (lambda x, a: torch.where(x > 0, a * x, torch.exp(x) - 1), (1.2,)),
    'psilu': (lambda x, a: x * torch.sigmoid(a.abs() * x), (1.3,)),
    'psoftplus': (lambda x, a: torch.log(1 + torch.exp(a.abs() * x)) / a.abs(), (1.3,)),
    'reblu': (lambda x, a: torch.where(x > 0, x + a * (torch.sqrt(x * x + 1) - 1), 0.), (0.3,)),
    'ssilu': (lambda x, b: _sigmoid_shifted(x, torch.ones_like(b), b.abs()), (0.3,)),
    'pssilu_fixed': (lambda x, a, b: _sigmoid_shifted(x, a.abs(), b.abs()), (1.2, 0.3)),
    'pssilu': (lambda x, a, b: _sigmoid_shifted(x, a.abs(), b.abs()), (1.3, 0.05)),
}


def plain_formulas(model: nn.Module) -> None:
    """Make every parametric activation of a model compute its formula in torch's operations."""
    names = {cls: name for name, cls in ACTIVATIONS.items()}
    for module in model.modules():
        if isinstance(module, ParametricActivation):
            formula, _ = FORMULAS[names[type(module)]]
            if names[type(module)] == 'psoftplus':  # their trainer uses torch's softplus, against overflow
                formula = lambda x, a: functional.softplus(a.abs() * x) / a.abs()  # noqa: E731
            parameters = [getattr(module, kind) for kind in ('alpha', 'beta') if hasattr(module, kind)]
            module.forward = lambda x, f=formula, parameters=parameters: f(x, *parameters)


def attacked(model: nn.Module, x: Tensor, y: Tensor, eps: float = EPS, steps: int = STEPS,
             step_size: float = STEP_SIZE, random_start: bool = True) -> Tensor:
    """PGD as in their trainer: gradients of the parameters are not switched off."""
    x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1) if random_start else x.clone()
    for _ in range(steps):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(x_adv), y), x_adv)
        x_adv = x_adv.detach() + step_size * gradient.sign()
        x_adv = (x + (x_adv - x).clamp(-eps, eps)).clamp(0, 1)
    return x_adv.detach()


def plain_update(
        model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, x_adv: Tensor | None = None) -> None:
    """Update the weights as their trainer does, with `x_adv` if given, and measure the clean accuracy for the log."""
    x, y = batch.x, batch.y
    if x_adv is None:
        x_adv = attacked(model.eval(), x, y)
    model.train()
    optimizer.zero_grad()
    output = model(x_adv)
    loss = functional.cross_entropy(output, y)
    betas = [parameter for name, parameter in model.named_parameters() if name.endswith('.beta')]
    for beta in betas:
        loss = loss + 10 * beta.abs().sum()
    loss.backward()
    for beta in betas:
        nn.utils.clip_grad_norm_([beta], 0.01)
    optimizer.step()
    loss.item()
    for logged in (output, model(x)):
        (logged.argmax(1) == y).float().mean().item()
