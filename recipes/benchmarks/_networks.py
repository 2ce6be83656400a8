"""Networks and images that the benchmarks attack, and PGD of other libraries under one signature."""
import functools
import importlib.metadata
import runpy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import timm_paf  # noqa: F401 - registers the models
from timm_paf.attacks import PGD
from timm_paf.data import digits_splits
from timm_paf.models import load_weights, read_checkpoint

Attack = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]  # model, x, y, eps, steps -> x_adv


class Network(NamedTuple):
    """Network in eval mode, images (N, C, H, W) in [0, 1], labels (N,), and the radii to attack with."""
    title: str
    model: nn.Module
    x: Tensor
    y: Tensor
    eps: list[str]


def cifar(device: str) -> Network:
    """CIFAR-10 ResNet-18 that pyautoattack ships, not robust, and the 20 CIFAR-10 images that foolbox ships."""
    import foolbox
    import pyautoattack
    examples = Path(pyautoattack.__file__).parent / 'examples'
    model = runpy.run_path(str(examples / 'resnet.py'))['ResNet18']().to(device)
    model.load_state_dict(torch.load(examples / 'model_test.pt', map_location=device, weights_only=True))
    files = sorted((Path(foolbox.__file__).parent / 'data').glob('cifar10_*.png'))
    images = torch.from_numpy(np.stack([np.asarray(Image.open(file).convert('RGB')) for file in files]))
    y = torch.tensor([int(file.stem.rsplit('_', 1)[1]) for file in files], device=device)
    x = images.permute(0, 3, 1, 2).contiguous().float().to(device) / 255
    return Network('ResNet-18, CIFAR-10, not robust', model.eval(), x, y, ['0.5/255', '1/255', '2/255', '4/255'])


def digits(device: str, name: str = '', checkpoint: Path | None = None, size: int = 8, epochs: int = 20) -> Network:
    """Robust network for the digits: of a checkpoint, or trained here at radius 0.2 (a small one without a name)."""
    torch.manual_seed(0)
    splits = digits_splits()
    (x, y), (x_test, y_test) = (
        (F.interpolate(split.images, size=(size, size), mode='bilinear').to(device), split.labels.to(device))
        for split in (splits.train, splits.test))
    if checkpoint is not None:
        name, epochs = str(read_checkpoint(checkpoint)['args']['model']), 0
    model = timm.create_model(name, in_chans=1, num_classes=10) if name else nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.SiLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64), nn.SiLU(), nn.Flatten(), nn.Linear(1024, 128), nn.SiLU(), nn.Linear(128, 10))
    if checkpoint is not None:
        load_weights(model, checkpoint)
    optimizer, attack = torch.optim.Adam(model.to(device).parameters(), lr=2e-3), PGD(eps=0.2)
    for epoch in range(epochs):
        optimizer.param_groups[0]['lr'] = 2e-3 * (1 - epoch / epochs)
        for rows in torch.randperm(len(x)).to(device).split(128):
            x_adv = attack(model, x[rows], y[rows])
            optimizer.zero_grad()
            F.cross_entropy(model(x_adv), y[rows]).backward()
            optimizer.step()
    title = f'{name or "convolutional network"}, digits, robust'
    return Network(title, model.eval(), x_test, y_test, ['0.05', '0.1', '0.2', '0.3'])


def archive(device: str, checkpoint: Path, path: Path) -> Network:
    """Network of a checkpoint of adv_train.py, with the images of an archive, whose labels are below its classes."""
    trained = read_checkpoint(checkpoint)['args']
    with np.load(path) as arrays:
        x, y = torch.from_numpy(arrays['image']).permute(0, 3, 1, 2), torch.from_numpy(arrays['label'])
    model = timm.create_model(trained['model'], in_chans=x.shape[1], num_classes=int(y.max()) + 1)
    load_weights(model, checkpoint)
    x = x.contiguous().to(device).float() / 255
    return Network(f'{trained["model"]}, {path}', model.to(device).eval(), x, y.to(device), [trained['eps']])


@torch.no_grad()
def random_model(device: str, name: str, images: int) -> Network:
    """Network with random weights on random images, whose labels are its own predictions."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).to(device).eval()
    x = torch.rand(images, 3, 32, 32, device=device)
    return Network(f'{name}, random weights and images', model, x, model(x).argmax(1), ['8/255'])


@functools.cache
def pass_flops(name: str, channels: int, size: int) -> tuple[float, float]:
    """Operations of convolutions and matrix products for an image: forward, and backward to images or to weights."""
    model = timm.create_model(name, in_chans=channels, num_classes=10, device='meta').eval()
    x, counts = torch.empty(2, channels, size, size, device='meta'), []
    for wanted in (x, model):
        model.requires_grad_(wanted is model)
        x.requires_grad_(wanted is x)
        with FlopCounterMode(display=False) as counter:
            model(x).sum().backward()
        counts.append(counter.get_total_flops() / len(x))
    return counts[0], counts[1]


def update_flops(name: str, x: Tensor, steps: int) -> float:
    """Operations for one image, like those in x, in an update with PGD and one pass to the weights."""
    attack, weights = pass_flops(name, x.shape[1], x.shape[-1])
    return steps * attack + weights


def step_size(eps: float, steps: int) -> float:
    """Step size of all attacks."""
    return 2.5 * eps / steps


def _foolbox(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    import foolbox
    pgd = foolbox.attacks.LinfPGD(abs_stepsize=step_size(eps, steps), steps=steps)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    return pgd.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=eps)


def _torchattacks(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    import torchattacks
    return torchattacks.PGD(model, eps=eps, alpha=step_size(eps, steps), steps=steps)(x, y)


def _art(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), x.shape[1:], model(x[:1]).shape[1], clip_values=(0, 1),
                                  device_type='cpu' if x.device.type == 'cpu' else 'gpu')
    pgd = ProjectedGradientDescentPyTorch(estimator, eps=eps, eps_step=step_size(eps, steps), max_iter=steps,
                                          num_random_init=1, batch_size=len(x), verbose=False)
    return torch.from_numpy(pgd.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)


def _adv_lib(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    sys.modules.setdefault('visdom', types.ModuleType('visdom'))  # imported for plots, which nothing here draws
    from adv_lib.attacks import pgd_linf
    return pgd_linf(model, x, y, ε=eps, steps=steps, random_init=True, absolute_step_size=step_size(eps, steps))


def peers() -> dict[str, Attack]:
    """PGD of every other library that is installed, by name and version; the others are named on stderr."""
    known: dict[str, Attack] = {
        'foolbox': _foolbox, 'torchattacks': _torchattacks, 'adversarial-robustness-toolbox': _art, 'adv-lib': _adv_lib}
    found = {}
    for package, attack in known.items():
        try:
            found[f'{package} {importlib.metadata.version(package)}'] = attack
        except importlib.metadata.PackageNotFoundError:
            print(f'{package} is not installed and is left out', file=sys.stderr)
    return found
