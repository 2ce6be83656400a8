"""Networks and images that the benchmarks attack, and PGD of other libraries under one signature."""
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import timm_paf  # noqa: F401 - registers the models
from timm_paf.attacks import PGD
from timm_paf.data import digits_splits
from timm_paf.models import load_weights, read_checkpoint

__all__ = ['Attack', 'Subject', 'cifar', 'digits', 'peers', 'step_size']

Attack = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]  # model, x, y, eps, steps -> x_adv


class Subject(NamedTuple):
    """Network in eval mode, images (N, C, H, W) in [0, 1], labels (N,), and the radii to attack with."""
    title: str
    model: nn.Module
    x: Tensor
    y: Tensor
    eps: list[str]


def cifar(device: str) -> Subject:
    """CIFAR-10 ResNet-18 that pyautoattack ships, not robust, and the 20 CIFAR-10 images that foolbox ships."""
    import foolbox
    import pyautoattack
    examples = Path(pyautoattack.__file__).parent / 'examples'
    spec = importlib.util.spec_from_file_location('pyautoattack_resnet', examples / 'resnet.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.ResNet18()
    model.load_state_dict(torch.load(examples / 'model_test.pt', map_location='cpu', weights_only=True))
    files = sorted((Path(foolbox.__file__).parent / 'data').glob('cifar10_*.png'))
    images = np.stack([np.asarray(Image.open(file).convert('RGB')) for file in files])
    y = torch.tensor([int(file.stem.rsplit('_', 1)[1]) for file in files], device=device)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float().to(device) / 255
    return Subject('ResNet-18, CIFAR-10, not robust', model.to(device).eval(), x, y,
                   ['0.5/255', '1/255', '2/255', '4/255'])


def digits(
        device: str,
        *,
        name: str | None = None,
        checkpoint: Path | None = None,
        size: int = 8,
        epochs: int = 20,
) -> Subject:
    """Robust network for the embedded digits, and their test images.

    Args:
        device: Device of network and images.
        name: Model to train with PGD-10 at radius 0.2; a small convolutional network if None.
        checkpoint: Checkpoint of `adv_train.py` on the digits, to load instead of training.
        size: Height and width that the images are resized to.
        epochs: Epochs of training.
    """
    torch.manual_seed(0)
    splits = digits_splits()
    (x, y), (x_test, y_test) = (
        (F.interpolate(split.images, size=(size, size), mode='bilinear').to(device), split.labels.to(device))
        for split in (splits.train, splits.test))
    if checkpoint is not None:
        name = str(read_checkpoint(checkpoint)['args']['model'])
    model = _convolutional() if name is None else timm.create_model(name, in_chans=1, num_classes=10)
    if checkpoint is not None:
        load_weights(model, checkpoint)
        model.to(device)
    else:
        _train(model.to(device), x, y, epochs)
    title = f'{name or "convolutional network"}, digits, {checkpoint.name if checkpoint else "robust"}'
    return Subject(title, model.eval(), x_test, y_test, ['0.05', '0.1', '0.2', '0.3'])


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.SiLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64), nn.SiLU(), nn.Flatten(), nn.Linear(1024, 128), nn.SiLU(), nn.Linear(128, 10))


def _train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    attack = PGD(eps=0.2)
    for epoch in range(epochs):
        optimizer.param_groups[0]['lr'] = 2e-3 * (1 - epoch / epochs)
        for rows in torch.randperm(len(x)).to(x.device).split(128):
            x_adv = attack(model, x[rows], y[rows])
            optimizer.zero_grad()
            F.cross_entropy(model(x_adv), y[rows]).backward()
            optimizer.step()


def step_size(eps: float, steps: int) -> float:
    """Step size of all attacks."""
    return 2.5 * eps / steps


def _foolbox() -> Attack:
    import foolbox

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        pgd = foolbox.attacks.LinfPGD(abs_stepsize=step_size(eps, steps), steps=steps)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        return pgd.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=eps)
    return attack


def _torchattacks() -> Attack:
    import torchattacks

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        return torchattacks.PGD(model, eps=eps, alpha=step_size(eps, steps), steps=steps)(x, y)
    return attack


def _art() -> Attack:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        estimator = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), x.shape[1:], model(x[:1]).shape[1], clip_values=(0, 1),
            device_type='cpu' if x.device.type == 'cpu' else 'gpu')
        pgd = ProjectedGradientDescentPyTorch(
            estimator, eps=eps, eps_step=step_size(eps, steps), max_iter=steps, num_random_init=1, batch_size=len(x),
            verbose=False)
        return torch.from_numpy(pgd.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)
    return attack


def _adv_lib() -> Attack:
    sys.modules.setdefault('visdom', types.ModuleType('visdom'))  # imported for its plots, which nothing here draws
    from adv_lib.attacks import pgd_linf

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        return pgd_linf(model, x, y, ε=eps, steps=steps, random_init=True, absolute_step_size=step_size(eps, steps))
    return attack


def peers() -> dict[str, Attack]:
    """PGD of every other library that is installed, by name and version; the others are named on stderr."""
    known: dict[str, Callable[[], Any]] = {
        'foolbox': _foolbox, 'torchattacks': _torchattacks, 'adversarial-robustness-toolbox': _art,
        'adv-lib': _adv_lib}
    found = {}
    for package, load in known.items():
        try:
            found[f'{package} {importlib.metadata.version(package)}'] = load()
        except ImportError as error:
            print(f'{package} is left out: {error}', file=sys.stderr)
    return found
