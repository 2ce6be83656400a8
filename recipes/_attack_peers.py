"""PGD of this package and of others under one signature, for benchmarks."""
import importlib.metadata
import sys
import types
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from timm_paf.attacks import PGD, frozen_parameters

__all__ = [
    'AGAIN', 'EARLY', 'FLOOR', 'OURS', 'Attack', 'contestants', 'early_stop', 'floor', 'ours', 'step', 'textbook']

Attack = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]  # model, x, y, eps, steps -> x_adv
OURS, EARLY, FLOOR, AGAIN = 'timm_paf', 'timm_paf, early_stop', 'floor', 'the floor again'


def step(eps: float, steps: int) -> float:
    return 2.5 * eps / steps


def floor(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    with frozen_parameters(model):
        for _ in range(steps):
            x = x.detach().requires_grad_()
            torch.autograd.grad(functional.cross_entropy(model(x), y, reduction='sum'), x)
    return x


def textbook(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """PGD from the images themselves, to compare results with."""
    x_adv = x
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(x_adv), y, reduction='sum'), x_adv)
        x_adv = (x_adv.detach() + step(eps, steps) * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return x_adv.detach()


def ours(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    return PGD(eps=eps, steps=steps)(model, x, y)


def early_stop(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    return PGD(eps=eps, steps=steps, early_stop=True)(model, x, y)


def foolbox_attack() -> Attack:
    import foolbox

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        subject = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        pgd = foolbox.attacks.LinfPGD(abs_stepsize=step(eps, steps), steps=steps)
        return pgd.run(subject, x, foolbox.criteria.Misclassification(y), epsilon=eps)
    return attack


def torchattacks_attack() -> Attack:
    import torchattacks

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        return torchattacks.PGD(model, eps=eps, alpha=step(eps, steps), steps=steps)(x, y)
    return attack


def art_attack() -> Attack:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        classes = model(x[:1]).shape[1]
        estimator = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), x.shape[1:], classes, clip_values=(0, 1),
            device_type='cpu' if x.device.type == 'cpu' else 'gpu')
        pgd = ProjectedGradientDescentPyTorch(
            estimator, eps=eps, eps_step=step(eps, steps), max_iter=steps, num_random_init=1, batch_size=len(x),
            verbose=False)
        return torch.from_numpy(pgd.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)
    return attack


def adv_lib_attack() -> Attack:
    sys.modules.setdefault('visdom', types.ModuleType('visdom'))  # for its plots; imported whether or not it draws
    from adv_lib.attacks import pgd_linf

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        return pgd_linf(model, x, y, ε=eps, steps=steps, random_init=True, absolute_step_size=step(eps, steps))
    return attack


PEERS: dict[str, tuple[str, Callable[[], Attack]]] = {
    'foolbox': ('foolbox', foolbox_attack),
    'torchattacks': ('torchattacks', torchattacks_attack),
    'ART': ('adversarial-robustness-toolbox', art_attack),
    'adv-lib': ('adv-lib', adv_lib_attack),
}


def contestants() -> tuple[dict[str, Attack], list[str]]:
    """Attacks by name, and a line for each peer that is left out."""
    found: dict[str, Attack] = {OURS: ours, EARLY: early_stop}
    missing = []
    for name, (package, load) in PEERS.items():
        try:
            found[f'{name} {importlib.metadata.version(package)}'] = load()
        except ImportError as error:
            missing.append(f'{name} left out: {error}')
    return found, missing
