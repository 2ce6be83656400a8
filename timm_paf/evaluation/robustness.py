"""Measurement of clean and robust accuracy."""
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf.attacks import (
    PGD,
    AutoAttackResult,
    CompiledModel,
    CompileSettings,
    ThreatModel,
    autoattack,
    check_images,
    check_pixels,
    pointwise_worst_case,
    write_verdicts,
)
from timm_paf.attacks.compiled import Compile
from timm_paf.evaluation._verdicts import Attack, verdicts
from timm_paf.evaluation.curves import accuracy_by_class
from timm_paf.evaluation.report import Accuracy, Measurement, RobustnessReport, file_sha256

__all__ = ['accuracy_under_attack', 'clean_accuracy', 'evaluate_robustness']


def clean_accuracy(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        batch_size: int = 250,
        device: torch.device | None = None,
) -> Accuracy:
    """Accuracy without an attack, in eval mode; the model is left as found.

    Args:
        model: Maps images to logits.
        x: Images (N, C, H, W), on any device.
        y: Labels (N,).
        batch_size: Images a batch.
        device: Where the model is; its first parameter's if None.

    Raises:
        ValueError: If images leave [0, 1].
    """
    check_pixels(x)
    return Accuracy.of(verdicts(model, x, y, attack=None, batch_size=batch_size, device=device))


def accuracy_under_attack(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        attack: Attack,
        batch_size: int = 250,
        device: torch.device | None = None,
        seeds: Tensor | None = None,
) -> Accuracy:
    """Accuracy on the images that an attack makes, in eval mode; the model is left as found.

    Args:
        model: Maps images to logits.
        x: Images (N, C, H, W) in [0, 1], on any device.
        y: Labels (N,).
        attack: Called batch by batch as attack(model, x, y), with `seeds=` of the batch if they are given.
        batch_size: Images a batch.
        device: Where the model is; its first parameter's if None.
        seeds: A seed of each image, (N,), int64, as `PGD` takes them: with 0, 1, 2, … as an image's place in its data
            set, the result depends neither on `batch_size` nor on which images are looked at together.

    Raises:
        ValueError: If images leave [0, 1], or the attack makes NaN.
    """
    check_pixels(x)
    return Accuracy.of(verdicts(model, x, y, attack=attack, batch_size=batch_size, device=device, seeds=seeds))


def evaluate_robustness(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        threat: ThreatModel,
        pgd_steps: int = 20,
        autoattack_version: str | None = 'standard',
        n_examples: int | None = None,
        batch_size: int = 250,
        seed: int = 0,
        device: torch.device | None = None,
        progress: Callable[[str, int, int, int, float], None] | None = None,
        state: str | os.PathLike | None = None,
        rank: int = 0,
        world_size: int = 1,
        save_adv: str | os.PathLike | None = None,
        save_verdicts: str | os.PathLike | None = None,
        model_name: str | None = None,
        dataset: str | None = None,
        split: str | None = None,
        checkpoint: str | os.PathLike | None = None,
        compile: Compile = False,
) -> RobustnessReport:
    """Clean accuracy, accuracy under PGD, and under AutoAttack.

    Each image starts PGD where its place among the images says, whatever batch it is in. Processes that share the
    measurement take batches in turn and count what one process would.

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
        progress: Called by AutoAttack as progress(component, images done, images in all, standing, seconds left).
        state: Folder in which AutoAttack keeps what it finds and goes on after an interrupt.
        rank: Number of this process among those that share the work through `torch.distributed`; only the first
            writes files.
        world_size: How many they are; each has all images.
        save_adv: Archive for AutoAttack's images (`AutoAttackResult.save`); classifying them gives its accuracy.
        save_verdicts: CSV for the verdicts on the images that AutoAttack attacked, one row an image.
        model_name: For the report, as the next ones.
        dataset: Name of the data set.
        split: Part of the data set.
        checkpoint: File that the weights came from.
        compile: Compile passes and steps for batches of one size, as `timm_paf.attacks.PGD` has it.

    Returns:
        The report, with measurements 'clean', 'pgd' and, unless left out, 'autoattack' and 'worst_case': of the images
        that AutoAttack attacked, those that stand under both.

    Raises:
        ValueError: If images, labels or logits are not as expected (`timm_paf.attacks.check_images`), if `state` is
            that of another run, or if files are asked for that AutoAttack would fill, and it is left out.
        OSError: If a file cannot be written.
    """
    if autoattack_version is None and (asked := [p for p in (state, save_adv, save_verdicts) if p is not None]):
        raise ValueError(f'{asked[0]} is for AutoAttack, which is left out; leave this path out too.')
    device = device or next((p.device for p in model.parameters()), x.device)
    compiled, judge = CompileSettings.of(compile), model
    if compiled is not None:
        compiled = dataclasses.replace(compiled, batch_size=compiled.batch_size or min(batch_size, len(x)))
        judge = CompiledModel(model, compile=compiled)
    attacked: dict[str, Any] = dict(norm=threat.norm, eps=str(threat.eps), eps_value=threat.radius, seed=seed)
    measurements: dict[str, Measurement] = {}

    with Processes.from_rank(rank, world_size, device=device).patient() as ranks:
        started = time.monotonic()
        ranks.run_together(lambda: check_images(model, x, y, device=device))
        shared: dict[str, Any] = dict(batch_size=batch_size, device=device, ranks=ranks)
        clean = verdicts(judge, x, y, attack=None, **shared)
        measurements['clean'] = Measurement(
            accuracy=Accuracy.of(clean), attack='none', seconds=time.monotonic() - started)

        started = time.monotonic()
        pgd = PGD(eps=threat.radius, steps=pgd_steps, norm=threat.norm, seed=seed, compile=compiled)
        under_pgd = verdicts(judge, x, y, attack=pgd, seeds=torch.arange(len(x)), **shared)
    robust = clean & under_pgd
    measurements['pgd'] = Measurement(
        accuracy=Accuracy.of(under_pgd), attack=f'PGD-{pgd_steps}', steps=pgd_steps, seconds=time.monotonic() - started,
        details={'step_size': pgd.step_size, 'loss': 'ce', 'restarts': 1}, **attacked)

    if autoattack_version is not None:
        started = time.monotonic()
        some_x, some_y = x[:n_examples], y[:n_examples]
        result = autoattack(
            model, some_x, some_y, eps=threat.radius, norm=threat.norm, version=autoattack_version,
            batch_size=batch_size, seed=seed, device=device, progress=progress, state=state, rank=rank,
            world_size=world_size, compile=compile)
        measurements['autoattack'] = Measurement(
            accuracy=Accuracy.of(result.robust), attack=f'AutoAttack {autoattack_version}',
            seconds=time.monotonic() - started, details=_details(result, autoattack_version), **attacked)
        worst, broken_by = pointwise_worst_case(
            result.clean, {**result.not_broken_by(), f'PGD-{pgd_steps}': under_pgd[:len(some_y)]})
        measurements['worst_case'] = Measurement(
            accuracy=Accuracy.of(worst), attack='worst of both', details={'broken_by': _counts(broken_by)},
            **attacked)
        if rank == 0 and save_adv is not None:
            result.save(save_adv, some_y)
        if rank == 0 and save_verdicts is not None:
            found = {'clean': result.clean, 'pgd': under_pgd[:len(some_y)], 'autoattack': result.robust}
            write_verdicts(save_verdicts, some_y, {**found, 'worst_case': worst}, broken_by=broken_by)
        robust[:len(some_y)] &= worst
    return RobustnessReport(
        measurements=measurements, by_class=accuracy_by_class(y, clean=clean, robust=robust),
        model=model_name, dataset=dataset, split=split,
        checkpoint=None if checkpoint is None else str(checkpoint),
        checkpoint_sha256=None if checkpoint is None else file_sha256(checkpoint))


def _details(result: AutoAttackResult, version: str) -> dict[str, Any]:
    return {
        'version': version, 'components': list(result.components), 'clean_correct': int(result.clean.sum()),
        'warnings': list(result.warnings), 'broken_by': _counts(result.broken_by),
        'runs': [dataclasses.asdict(run) for run in result.runs]}


def _counts(broken_by: tuple[str | None, ...]) -> dict[str, int]:
    return dict(Counter(name for name in broken_by if name is not None))
