"""Measurement of clean and robust accuracy."""
import os
import time
from collections.abc import Callable
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from ..attacks import PGD, ThreatModel, autoattack, check_images
from ._verdicts import verdicts
from .curves import accuracy_by_class
from .report import Accuracy, Measurement, RobustnessReport, file_sha256

__all__ = ['accuracy_under_attack', 'clean_accuracy', 'evaluate_robustness']


def clean_accuracy(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        batch_size: int = 250,
        device: Optional[torch.device] = None,
) -> Accuracy:
    """Accuracy without an attack, in eval mode; the model is left as found.

    Args:
        model: Maps images to logits.
        x: Images (N, C, H, W), on any device.
        y: Labels (N,).
        batch_size: Images a batch.
        device: Where the model is; its first parameter's if None.
    """
    return Accuracy.of(verdicts(model, x, y, attack=None, batch_size=batch_size, device=device))


def accuracy_under_attack(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        attack: Callable[[nn.Module, Tensor, Tensor], Tensor],
        batch_size: int = 250,
        device: Optional[torch.device] = None,
) -> Accuracy:
    """Accuracy on the images that an attack makes, in eval mode; the model is left as found.

    Args:
        model: Maps images to logits.
        x: Images (N, C, H, W) in [0, 1], on any device.
        y: Labels (N,).
        attack: Called batch by batch as attack(model, x, y).
        batch_size: Images a batch.
        device: Where the model is; its first parameter's if None.
    """
    return Accuracy.of(verdicts(model, x, y, attack=attack, batch_size=batch_size, device=device))


def evaluate_robustness(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        threat: ThreatModel,
        pgd_steps: int = 20,
        autoattack_version: Optional[str] = 'standard',
        n_examples: Optional[int] = None,
        batch_size: int = 250,
        seed: int = 0,
        device: Optional[torch.device] = None,
        progress: Optional[Callable[[str, int, int], None]] = None,
        model_name: Optional[str] = None,
        dataset: Optional[str] = None,
        split: Optional[str] = None,
        checkpoint: Union[str, os.PathLike, None] = None,
) -> RobustnessReport:
    """Clean accuracy, accuracy under PGD, and under AutoAttack.

    Args:
        model: Maps images in [0, 1] to logits; left as found.
        x: Images (N, C, H, W) in [0, 1].
        y: Labels (N,), int64.
        threat: Norm and radius.
        pgd_steps: Steps of PGD, each 2.5 eps / pgd_steps long.
        autoattack_version: 'standard', 'rand', or None to leave AutoAttack out.
        n_examples: AutoAttack attacks the first n images; all if None or if there are fewer.
        batch_size: Images a batch.
        seed: Seed of the attacks.
        device: Where the model is; its first parameter's if None.
        progress: Called as progress(attack, batches done, batches in all).
        model_name: For the report, as the next ones.
        dataset: Name of the data set.
        split: Part of the data set.
        checkpoint: File that the weights came from.

    Returns:
        The report, with measurements 'clean', 'pgd' and, unless left out, 'autoattack'.

    Raises:
        ValueError: If images, labels or logits are not as expected (`timm_paf.attacks.check_images`).
    """
    device = device or next((p.device for p in model.parameters()), x.device)
    check_images(model, x, y, device=device)
    attacked: dict[str, Any] = dict(norm=threat.norm, eps=str(threat.eps), eps_value=threat.radius, seed=seed)
    measurements: dict[str, Measurement] = {}

    started = time.monotonic()
    clean = verdicts(model, x, y, attack=None, batch_size=batch_size, device=device)
    measurements['clean'] = Measurement(accuracy=Accuracy.of(clean), attack='none', seconds=time.monotonic() - started)

    started = time.monotonic()
    pgd = PGD(eps=threat.radius, steps=pgd_steps, norm=threat.norm, seed=seed)
    robust = verdicts(model, x, y, attack=pgd, batch_size=batch_size, device=device)
    measurements['pgd'] = Measurement(
        accuracy=Accuracy.of(robust), attack=f'PGD-{pgd_steps}', steps=pgd_steps, seconds=time.monotonic() - started,
        details={'step_size': pgd.step_size, 'loss': 'ce', 'restarts': 1}, **attacked)

    if autoattack_version is not None:
        started = time.monotonic()
        result = autoattack(
            model, x[:n_examples], y[:n_examples], eps=threat.radius, norm=threat.norm, version=autoattack_version,
            batch_size=batch_size, seed=seed, device=device, progress=progress)
        measurements['autoattack'] = Measurement(
            accuracy=Accuracy.of(result.robust),
            attack=f'AutoAttack {autoattack_version}', seconds=time.monotonic() - started,
            details={
                'version': autoattack_version, 'components': list(result.components),
                'clean_correct': int(result.clean.sum()), 'warnings': list(result.warnings)},
            **attacked)
        robust[:len(result.robust)] &= result.robust
    return RobustnessReport(
        measurements=measurements, by_class=accuracy_by_class(y, clean=clean, robust=clean & robust),
        model=model_name, dataset=dataset, split=split,
        checkpoint=None if checkpoint is None else str(checkpoint),
        checkpoint_sha256=None if checkpoint is None else file_sha256(checkpoint))
