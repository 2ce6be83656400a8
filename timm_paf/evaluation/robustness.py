"""Clean accuracy, accuracy under PGD, and AutoAttack."""
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf._files import file_sha256
from timm_paf.attacks import (
    PGD,
    AutoAttackResult,
    CompiledModel,
    CompileSettings,
    Expected,
    ThreatModel,
    autoattack,
    autoattack_passes,
    check_images,
    check_pixels,
    pointwise_worst_case,
    write_verdicts,
)
from timm_paf.attacks import check_state as check_autoattack_state
from timm_paf.attacks.autoattack_state import AutoAttackSettings, find_run, open_run
from timm_paf.attacks.compiled import Compile
from timm_paf.evaluation.accuracy import Accuracy, Measurement
from timm_paf.evaluation.correct import Attack, correct_mask, model_device
from timm_paf.evaluation.curves import accuracy_by_class, chance_warning
from timm_paf.evaluation.report import RobustnessReport

__all__ = ['accuracy_under_attack', 'check_state', 'clean_accuracy', 'evaluate_robustness']

_PGD_STATE = '.pgd'  # folder in the state, which AutoAttack leaves alone because the name begins with a point


def clean_accuracy(
        model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 250, device: torch.device | None = None,
) -> Accuracy:
    """Accuracy without an attack; arguments and errors as `accuracy_under_attack`."""
    check_pixels(x)
    return Accuracy.of(correct_mask(model, x, y, batch_size=batch_size, device=device))


def accuracy_under_attack(
        model: nn.Module, x: Tensor, y: Tensor, *, attack: Attack, batch_size: int = 250,
        device: torch.device | None = None, seeds: Tensor | None = None,
) -> Accuracy:
    """Accuracy under an attack, in eval mode; the model is not changed.

    Args:
        model: Maps images to logits.
        x: Images (N, C, H, W) in [0, 1], on any device.
        y: Labels (N,).
        attack: Called per batch as attack(model, x, y), with `seeds=` of the batch if seeds are given.
        batch_size: Images per batch.
        device: Device of the model; that of its first parameter if None.
        seeds: One seed per image, (N,) int64, for the random start of `PGD`. If the seed is the index of the image in
            its data set, the result depends neither on `batch_size` nor on the other images.

    Raises:
        ValueError: If pixels are outside [0, 1], or the attack returns NaN.
    """
    check_pixels(x)
    return Accuracy.of(correct_mask(model, x, y, attack=attack, batch_size=batch_size, device=device, seeds=seeds))


def evaluate_robustness(
        model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, pgd_steps: int = 20,
        n_pgd: int | None = None, autoattack_version: str | None = 'standard', attacks: Sequence[str] | None = None,
        n_examples: int | None = None, batch_size: int = 250, seed: int = 0, device: torch.device | None = None,
        progress: Callable[[str, int, int, int, float], None] | None = None, state: str | os.PathLike | None = None,
        rank: int = 0, world_size: int = 1, save_adv: str | os.PathLike | None = None,
        save_verdicts: str | os.PathLike | None = None, model_name: str | None = None, dataset: str | None = None,
        split: str | None = None, class_names: Sequence[str] = (), checkpoint: str | os.PathLike | None = None,
        compile: Compile = False, capture: str = 'auto',
) -> RobustnessReport:
    """Clean accuracy, accuracy under PGD, and accuracy under AutoAttack.

    The random start of PGD depends on the seed and the index of the image, not on its batch. Several processes take
    batches in turn and find the same counts as one; process 0 writes files.

    Args:
        model: Maps images in [0, 1] to logits; it is not changed.
        x, y: Images (N, C, H, W) in [0, 1], and labels (N,), int64.
        threat: Norm and radius.
        pgd_steps: Number of steps of PGD; each has length 2.5 eps / pgd_steps.
        n_pgd: Number of images for PGD, from the first; all if None or larger than N.
        autoattack_version: 'standard', 'rand', 'custom' with a list of `attacks`, or None to skip AutoAttack.
        attacks: Components of 'custom', see `timm_paf.attacks.autoattack`.
        n_examples: Number of images for AutoAttack, from the first; all if None or larger than N.
        batch_size: Images per batch.
        seed: Seed of the attacks.
        device: Device of the model; that of its first parameter if None.
        progress: Called as progress(part, images done, all images, robust images, seconds left) after every batch, and
            twice a second in AutoAttack. The time left is that of all parts; NaN if it is not known yet.
        state: Folder for intermediate results, from which an interrupted run resumes.
        rank, world_size: Number of this process, from 0, and of all, in `torch.distributed`; each needs all images.
        save_adv: Archive for the images that AutoAttack returns, see `AutoAttackResult.save`.
        save_verdicts: CSV file with one row per image of AutoAttack: 1 if it is correct under an attack, else 0.
        model_name, dataset, split: Names for the report.
        class_names: Names of the classes 0, 1, … for the report and `save_adv`.
        checkpoint: File of the weights, for the report.
        compile: Compile the model, for batches of one size, see `timm_paf.attacks.PGD`.
        capture: CUDA graphs for the attacks, see `timm_paf.attacks.PGD`.

    Returns:
        The report, with measurements 'clean' and 'pgd'. PGD attacks the images that are classified correctly; as in
        AutoAttack, the others count as wrong. With AutoAttack, also 'autoattack' and 'worst_case': accuracy
        under both attacks, on the images that AutoAttack attacked. If PGD attacks fewer, AutoAttack alone counts for
        the rest. Accuracies per class are of the images that were attacked.

    Raises:
        ValueError: If images, labels or logits are not valid (`timm_paf.attacks.check_images`), if `state` belongs to
            another run, or if a file for AutoAttack is given but AutoAttack is skipped.
        OSError: If a file cannot be written.
    """
    paths = [path for path in (save_adv, save_verdicts) if path is not None]
    if autoattack_version is None and paths:
        raise ValueError(
            f'{paths[0]} is for AutoAttack, which is skipped; leave out this path, or set autoattack_version.')
    started = time.monotonic()
    device = device or model_device(model, x.device)
    facts: dict[str, Any] = dict(norm=threat.norm, eps=str(threat.eps), eps_value=threat.radius, seed=seed)
    with Processes.from_rank(rank, world_size, device=device).patient() as processes:
        classes = processes.run_together(lambda: check_images(model, x, y, device=device, dtype=x.dtype))
        compiled, network = CompileSettings.of(compile), model
        if compiled is not None:
            compiled = dataclasses.replace(compiled, batch_size=compiled.batch_size or min(batch_size, len(x)))
            network = CompiledModel(model, compile=compiled)
        folder = None if state is None else Path(state) / _PGD_STATE
        if folder is not None:
            identity = _pgd_identity(
                model, x, y, threat, pgd_steps=pgd_steps, n_pgd=n_pgd, batch_size=batch_size, seed=seed, device=device,
                compile=compile)
            processes.broadcast_object(lambda: open_run(folder, identity))
        shared: dict[str, Any] = dict(batch_size=batch_size, device=device, processes=processes, folder=folder)
        view = _Progress(
            progress, classes=classes, steps=pgd_steps, processes=world_size, norm=threat.norm,
            autoattack=(autoattack_version, attacks), attacked=len(x[:n_examples]))
        clean = correct_mask(network, x, y, progress=partial(view.clean, len(x)), part=0, **shared)
        attacked, right = time.monotonic(), clean[:n_pgd].nonzero().flatten()
        view.images = len(right)
        pgd = PGD(eps=threat.radius, steps=pgd_steps, norm=threat.norm, seed=seed, compile=compiled, capture=capture)
        under_pgd = correct_mask(
            network, x[:n_pgd], y[:n_pgd], attack=pgd, seeds=torch.arange(len(x)), progress=view.pgd, part=1,
            rows=right, **shared)
    robust = clean.clone()
    robust[:len(under_pgd)] &= under_pgd
    attacked_images = max(len(under_pgd), 0 if autoattack_version is None else len(y[:n_examples]))
    measurements = {
        'clean': Measurement(accuracy=Accuracy.of(clean), attack='none', seconds=attacked - started),
        'pgd': Measurement(
            accuracy=Accuracy.of(under_pgd), attack=f'PGD-{pgd_steps}', steps=pgd_steps,
            seconds=time.monotonic() - attacked,
            details={'step_size': pgd.step_size, 'loss': 'ce', 'restarts': 1}, **facts)}
    if autoattack_version is not None:
        some_y = y[:n_examples]
        unattacked = torch.ones(max(0, len(some_y) - len(under_pgd)), dtype=torch.bool)
        under_pgd = torch.cat([under_pgd, unattacked])[:len(some_y)]
        attacked = time.monotonic()
        result = autoattack(
            model, x[:n_examples], some_y, eps=threat.radius, norm=threat.norm, version=autoattack_version,
            attacks=attacks, expected=view.expected, batch_size=batch_size, seed=seed, device=device, progress=progress,
            state=state, rank=rank, world_size=world_size, compile=compile, capture=capture)
        seconds = time.monotonic() - attacked
        worst, broken_by = pointwise_worst_case(
            result.clean, {**result.not_broken_by(), f'PGD-{pgd_steps}': under_pgd})
        robust[:len(some_y)] &= worst
        if rank == 0 and save_adv is not None:
            result.save(save_adv, some_y, class_names=class_names)
        if rank == 0 and save_verdicts is not None:
            masks = {'clean': result.clean, 'pgd': under_pgd, 'autoattack': result.robust, 'worst_case': worst}
            write_verdicts(save_verdicts, some_y, masks, broken_by=broken_by)
        measurements['autoattack'] = Measurement(
            accuracy=Accuracy.of(result.robust), attack=f'AutoAttack {autoattack_version}', seconds=seconds,
            details={'version': autoattack_version, **_details(result)}, **facts)
        measurements['worst_case'] = Measurement(
            accuracy=Accuracy.of(worst), attack='worst of both', details={'broken_by': _counts(broken_by)}, **facts)
    return RobustnessReport(
        measurements=measurements, model=model_name, dataset=dataset, split=split, class_names=tuple(class_names),
        by_class=accuracy_by_class(y[:attacked_images], clean=clean[:attacked_images], robust=robust[:attacked_images]),
        warnings=tuple(filter(None, [chance_warning(clean.cpu(), y.cpu())])),
        checkpoint=None if checkpoint is None else str(checkpoint),
        checkpoint_sha256=None if checkpoint is None else file_sha256(checkpoint))


def check_state(
        state: str | os.PathLike, model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, pgd_steps: int,
        autoattack_version: str | None, attacks: Sequence[str] | None, n_pgd: int | None, n_examples: int | None,
        batch_size: int, seed: int, device: torch.device, compile: Compile = False, capture: str = 'auto') -> None:
    """Raise ValueError if `evaluate_robustness` with these arguments cannot start or resume in this folder."""
    shared: dict[str, Any] = dict(batch_size=batch_size, seed=seed, device=device, compile=compile, capture=capture)
    find_run(Path(state) / _PGD_STATE, _pgd_identity(
        model, x, y, threat, pgd_steps=pgd_steps, n_pgd=n_pgd, **shared))
    if autoattack_version is not None:
        check_autoattack_state(
            state, model, x[:n_examples], y[:n_examples], eps=threat.radius, norm=threat.norm,
            version=autoattack_version, attacks=attacks, **shared)


def _pgd_identity(
        model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, pgd_steps: int, n_pgd: int | None,
        **settings: Any) -> dict[str, Any]:
    """JSON values that have to be equal to resume clean accuracy and PGD; of the images, a sample is compared."""
    shared = AutoAttackSettings(eps=threat.radius, norm=threat.norm, **settings)
    sample = x[::max(1, len(x) // 256)].float().cpu()  # images that are decoded from files take long to read
    attack = f'PGD-{pgd_steps} on the correct ones of {"all" if n_pgd is None else n_pgd} images'
    return shared.identity((attack,), model, sample, y)


class _Progress:
    """Reports the progress of clean accuracy and PGD, with an estimate of the time left that counts AutoAttack in."""

    def __init__(
            self, progress: Callable[[str, int, int, int, float], None] | None, *, attacked: int, steps: int,
            processes: int, autoattack: tuple[str | None, Sequence[str] | None], norm: str, classes: int,
    ) -> None:
        self.progress, self.attacked, self.processes = progress, attacked, processes
        self.images = 0  # that PGD attacks
        self.name, self.passes = f'PGD-{steps}', 2 * steps + 1
        version, attacks = autoattack
        self.costs = [] if version is None else autoattack_passes(version, attacks, norm=norm, classes=classes)
        self.expected: Expected | None = None
        self.share = 1.  # of images that are classified correctly

    def clean(self, images: int, done: int, correct: int, seconds: float) -> None:
        """Report clean accuracy; how long the attacks take is not known yet."""
        self.share = correct / done
        if self.progress is not None:
            self.progress('clean', done, -(-images // self.processes), correct, float('nan'))

    def pgd(self, done: int, robust: int, seconds: float) -> None:
        """Report PGD."""
        images, speed = -(-self.images // self.processes), seconds / (done * self.passes)
        self.expected = Expected(robust / done, seconds, done * self.passes)
        left = (images - done) * self.passes * speed
        if self.costs:
            robust_passes = self.share * (self.costs[0] + self.expected.robust * sum(self.costs[1:]))
            left += self.attacked / self.processes * robust_passes * speed
        if self.progress is not None:
            self.progress(self.name, done, images, robust, max(left, 0.))


def _details(result: AutoAttackResult) -> dict[str, Any]:
    return {
        'components': list(result.components), 'clean_correct': int(result.clean.sum()),
        'warnings': list(result.warnings), 'broken_by': _counts(result.broken_by),
        'runs': [dataclasses.asdict(run) for run in result.runs]}


def _counts(broken_by: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(filter(None, broken_by)))
