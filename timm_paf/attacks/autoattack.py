"""AutoAttack (Croce and Hein, arXiv 2003.01690) through the package pyautoattack.

The attacks are the package's. What surrounds them is here, because the package asks for a model in eval mode and
float32, reseeds the global generators, leaves gradients on parameters, ends a tracer that was running, keeps a counter
that lets one model's warning stick to the next, and fails with fewer than ten classes.
"""
import logging
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from .state import eval_mode, frozen_parameters
from .threat import Eps, parse_eps

__all__ = ['AutoAttackResult', 'autoattack', 'check_images']

_NORMS = {'linf': 'Linf'}
_COMPONENTS = {'standard': ('apgd-ce', 'apgd-t', 'fab-t', 'square'), 'rand': ('apgd-ce', 'apgd-dlr')}
_KNOWN = ('apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'square')
_PROGRESS = re.compile(r'^(\S+) - (\d+)/(\d+) - ')
_STANDING = re.compile(r'^robust accuracy after (\S+): ')

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AutoAttackResult:
    """What AutoAttack left standing.

    Attributes:
        robust: (N,) bool on the CPU: classified correctly, clean and after every component.
        clean: (N,) bool on the CPU: classified correctly before any attack.
        x_adv: (N, …) images on the CPU: the one that fooled the model where one did, else the original.
        components: The attacks that were run, in order.
        warnings: What the package's own checks found suspicious, one sentence each.
    """
    robust: Tensor
    clean: Tensor
    x_adv: Tensor
    components: tuple[str, ...]
    warnings: tuple[str, ...]


class _Float32Logits(nn.Module):
    """The model as the package expects it: float32 in, float32 out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).float()


class _Listener(logging.Handler):
    """Turns the package's messages into progress and a list of warnings."""

    def __init__(self, progress: Optional[Progress]) -> None:
        super().__init__(logging.DEBUG)
        self.progress = progress
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            if message not in self.warnings:
                self.warnings.append(message)
        elif self.progress is not None and (match := _PROGRESS.match(message)):
            self.progress(match[1], int(match[2]), int(match[3]))


@contextmanager
def _global_state_kept(device: torch.device) -> Iterator[None]:
    """Random generators, tracer and the package's call counter, as they were."""
    from pyautoattack import checks
    trace, state = sys.gettrace(), random.getstate()
    devices = [device] if device.type == 'cuda' else []
    for name in checks.funcs:
        checks.funcs[name] = 0
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(state)
        sys.settrace(trace)


def check_images(model: nn.Module, x: Tensor, y: Tensor, *, device: torch.device) -> int:
    """See that images, labels and logits are what an evaluation can be made of.

    Args:
        model: Maps images to logits.
        x: Images (N, C, H, W), floating-point, in [0, 1].
        y: Labels (N,), int64.
        device: Where the model is.

    Returns:
        The number of classes.

    Raises:
        ValueError: If images leave [0, 1], counts or labels do not fit, or logits are not finite or not (B, K).
    """
    if not x.is_floating_point() or x.dim() < 2 or not len(x):
        raise ValueError(f'x is a {x.dtype} tensor of shape {tuple(x.shape)}; expected images (N, C, H, W) as floats.')
    if y.shape != x.shape[:1]:
        raise ValueError(f'y has shape {tuple(y.shape)}; expected one label for each of {len(x)} images.')
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f'images lie in [{low:g}, {high:g}]; expected [0, 1]. Put the normalisation inside the model, and divide '
            'uint8 images by 255.')
    with eval_mode(model), torch.no_grad():
        logits = model(x[:2].to(device))
    if logits.dim() != 2 or len(logits) != len(x[:2]):
        raise ValueError(f'the model returns a tensor of shape {tuple(logits.shape)}; expected logits (B, classes).')
    if not logits.isfinite().all():
        raise ValueError('the model returns NaN or infinite logits on clean images; was it trained to the end?')
    classes = logits.shape[1]
    if y.dtype != torch.int64 or int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(
            f'labels are {y.dtype} from {int(y.min())} to {int(y.max())}; expected int64 from 0 to {classes - 1}.')
    return classes


def autoattack(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Eps,
        norm: str = 'linf',
        version: str = 'standard',
        attacks: Optional[Sequence[str]] = None,
        batch_size: int = 250,
        seed: int = 0,
        device: Optional[torch.device] = None,
        progress: Optional[Progress] = None,
) -> AutoAttackResult:
    """Run AutoAttack; only images that still stand go on to the next component.

    Args:
        model: Maps images in [0, 1] to logits (B, K); left as found.
        x: Images (N, C, H, W) in [0, 1], on any device.
        y: Labels (N,), int64.
        eps: Radius, as `parse_eps` reads it.
        norm: 'linf'.
        version: 'standard', 'rand' (for models that are random on purpose) or 'custom'.
        attacks: Components of 'custom': some of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square.
        batch_size: Images a batch.
        seed: Seed of every component.
        device: Where the model is; its first parameter's if None.
        progress: Called as progress(component, batches done, batches in all).

    Returns:
        The verdict for each image, found by running the model again on the images that are returned.

    Raises:
        ValueError: As `check_images`, and if a setting is not as expected.
    """
    from pyautoattack import AutoAttack
    radius = parse_eps(eps, norm=norm)
    if norm not in _NORMS:
        raise ValueError(f'norm = {norm!r}: expected {" or ".join(_NORMS)}.')
    if version not in (*_COMPONENTS, 'custom') or (version == 'custom') != (attacks is not None):
        raise ValueError(
            f'version = {version!r} with attacks = {attacks}: expected standard or rand without a list of attacks, or '
            'custom with one.')
    if unknown := sorted(set(attacks or ()) - set(_KNOWN)):
        raise ValueError(f'attacks = {unknown}: expected some of {", ".join(_KNOWN)}.')
    device = device or next((p.device for p in model.parameters()), x.device)
    classes = check_images(model, x, y, device=device)
    x, y = x.detach().float().contiguous(), y.detach()
    components = tuple(attacks) if attacks is not None else _COMPONENTS[version]
    listener = _Listener(progress)
    if classes < 4:  # the (targeted) DLR loss compares the three (four) largest logits
        impossible = [name for name in components if name == 'apgd-t' or (name == 'apgd-dlr' and classes < 3)]
        components = tuple(name for name in components if name not in impossible)
        listener.warnings += [f'{name} left out: its loss needs more than {classes} classes.' for name in impossible]

    wrapped = _Float32Logits(model)
    float32 = torch.autocast(device.type, enabled=False)
    with eval_mode(model), frozen_parameters(model), _global_state_kept(device), float32:
        adversary = AutoAttack(
            wrapped, norm=_NORMS[norm], eps=radius, seed=seed, device=device, version=version,
            attacks=list(components) if version == 'custom' else None)
        adversary.attacks_to_run = list(components)
        for targeted in (adversary.apgd_targeted, adversary.fab):
            targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
        adversary.logger = adversary.apgd.logger = adversary.apgd_targeted.logger = _logger_for(listener)
        x_adv, _ = adversary.run_standard_evaluation(x, y, batch_size=batch_size)
        clean, robust = (_correct(wrapped, images, y, batch_size, device) for images in (x, x_adv))
    outside = float((x_adv - x).abs().max()) - radius
    if outside > 1e-6 or not (float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1):
        raise RuntimeError(f'AutoAttack returned images {outside:g} outside of the ball or out of [0, 1].')
    return AutoAttackResult(robust & clean, clean, x_adv.cpu(), components, tuple(listener.warnings))


def _logger_for(listener: _Listener) -> logging.Logger:
    logger = logging.Logger('timm_paf.autoattack', logging.DEBUG)  # not in the tree of loggers: nothing is printed
    logger.addHandler(listener)
    return logger


@torch.no_grad()
def _correct(model: nn.Module, x: Tensor, y: Tensor, batch_size: int, device: torch.device) -> Tensor:
    return torch.cat([
        model(images.to(device)).argmax(1).cpu() == labels.cpu()
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True)])
