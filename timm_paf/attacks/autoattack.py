"""AutoAttack (Croce and Hein, arXiv 2003.01690) through the package pyautoattack, with resume and several processes."""
import dataclasses
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf.attacks.autoattack_model import (
    AutoAttackModel,
    Expected,
    Progress,
    ProgressEstimator,
    WarningLog,
    passes_per_image,
    restore_globals,
)
from timm_paf.attacks.autoattack_result import AutoAttackResult, ComponentRun
from timm_paf.attacks.autoattack_state import (
    AutoAttackSettings,
    BatchResult,
    components_for,
    find_run,
    load_or_compute,
    open_run,
)
from timm_paf.attacks.checks import check_images
from timm_paf.attacks.compiled import Compile, CompiledModel
from timm_paf.attacks.state import eval_mode, frozen_parameters
from timm_paf.attacks.threat import Eps

__all__ = ['Expected', 'autoattack', 'autoattack_passes', 'check_state', 'rehearse_autoattack']

_NORMS = {'linf': ('Linf', math.inf), 'l2': ('L2', 2), 'l1': ('L1', 1)}  # name in the package, order


def autoattack(
        model: nn.Module, x: Tensor, y: Tensor, *, eps: Eps, norm: str = 'linf', version: str = 'standard',
        attacks: Sequence[str] | None = None, batch_size: int = 250, seed: int = 0, device: torch.device | None = None,
        progress: Progress | None = None, state: str | os.PathLike | None = None, rank: int = 0, world_size: int = 1,
        amp_dtype: torch.dtype | None = None, compile: Compile = False, capture: str = 'auto',
        expected: Expected | None = None,
) -> AutoAttackResult:
    """Run AutoAttack: each component attacks the images that are still robust, packed into full batches.

    The result for every image is that of the package called directly with the same seed, batch size and components.
    Neither the number of processes nor a resumed run changes a result; a resumed run repeats no finished batch.

    Args:
        model: Maps images in [0, 1] to logits (B, K); left as found.
        x: Images (N, C, H, W) in [0, 1], on any device; every process needs all of them.
        y: Labels (N,), int64.
        eps: Radius in units of [0, 1], see `parse_eps`.
        norm: 'linf', 'l2' or 'l1'.
        version: 'standard', 'rand' (for models that are random on purpose) or 'custom'.
        attacks: Components of 'custom': some of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square.
        batch_size: Images per batch.
        seed: Seed of every component.
        device: Device of the model; that of its first parameter if None.
        progress: Called as progress(component, images done, images in all, robust images, seconds left) for the share
            of this process, after every batch and twice a second inside a batch.
        state: Folder, shared by all processes, for the state of the run; an interrupted run is resumed from it.
        rank: Number of this process among those of `torch.distributed`.
        world_size: Number of processes.
        amp_dtype: torch.bfloat16 runs the model under autocast in the attacks, not for the results.
        compile: Compile the model, see `PGD`. Results can differ by rounding.
        capture: CUDA graphs for the forward and backward passes, see `PGD`.
        expected: Experience from another attack on these images, for a better estimate of the time left.

    Raises:
        ValueError: See `check_images`; or if a setting is invalid, or `state` belongs to another run.
        OSError: If `state` cannot be written.
    """
    device = device or next((p.device for p in model.parameters()), x.device)
    with (
            Processes.from_rank(rank, world_size, device=device).patient() as processes,
            torch.autocast(device.type, enabled=False)):
        run = processes.run_together(lambda: _Run(
            model, x, y, processes, eps=eps, norm=norm, version=version, attacks=attacks, batch_size=batch_size,
            seed=seed, device=device, amp_dtype=amp_dtype, compile=compile, capture=capture))
        run.open_state(state)
        with eval_mode(run.model), frozen_parameters(run.model), restore_globals(device), torch.no_grad():
            return run.finish(progress, expected)


def rehearse_autoattack(model: nn.Module, x: Tensor, y: Tensor, *, device: torch.device, **settings: Any) -> None:
    """Try every component of `autoattack` with a few steps, to find out what cannot work; the results are discarded.

    Args:
        model: As in `autoattack`; left as found.
        x, y: A few images, as in `autoattack`. The components attack them as images of the predicted classes.
        device: Device of the model.
        settings: `eps`, `norm`, `version`, `attacks`, `batch_size`, `seed` and `capture` of `autoattack`.

    Raises:
        ValueError: As `autoattack`, or with the name of the component that fails.
    """
    with torch.autocast(device.type, enabled=False):
        run = _Run(model, x, y, Processes(device), device=device, **settings)
        with eval_mode(run.model), frozen_parameters(run.model), restore_globals(device), torch.no_grad():
            run.rehearse()


def autoattack_passes(version: str, attacks: Sequence[str] | None, *, norm: str, classes: int) -> list[int]:
    """Forward plus backward passes for an image that stays robust, per component of `autoattack` with these arguments.

    Components whose loss needs more classes are left out.
    """
    from pyautoattack import AutoAttack
    chosen = components_for(version, attacks, classes)
    adversary = AutoAttack(
        None, norm=_NORMS[norm][0], eps=1., device='cpu', version=version, attacks=list(attacks) if attacks else None)
    for targeted in (adversary.apgd_targeted, adversary.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
    return [passes_per_image(adversary, name, classes) for name in chosen]


def check_state(state: str | os.PathLike, model: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> None:
    """Check that `autoattack` with these arguments can start or resume in this folder, else ValueError. Writes nothing.

    All arguments are those of `autoattack`, except for `progress`, `rank` and `world_size`.
    """
    device = settings.pop('device', None) or next((p.device for p in model.parameters()), x.device)
    find_run(Path(state), _Run(model, x, y, Processes(device), device=device, **settings).identity())


class _Run:
    """One run of all components, after checks of model, images, labels and settings."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, processes: Processes, **settings: Any) -> None:
        self.settings = AutoAttackSettings(**settings)
        classes = check_images(model, x, y, device=self.settings.device)
        self.x, self.y = x.detach().float().contiguous(), y.detach().cpu()
        self.processes, self.warnings = processes, WarningLog()
        self.components, left_out = self.settings.components(x, classes)
        self.warnings.add(*(f'{name} left out: its loss needs more than {classes} classes.' for name in left_out))
        self.bare_model = model
        if (compiled := self.settings.compiled) is not None:
            size = compiled.batch_size or min(self.settings.batch_size, len(x))
            model = CompiledModel(model, compile=dataclasses.replace(compiled, batch_size=size), halves=True)
        self.model = AutoAttackModel(model, classes=classes, capture=self.settings.capture)
        self.folder: Path | None = None

    def identity(self) -> dict[str, Any]:
        return self.settings.identity(self.components, self.bare_model, self.x, self.y)

    def open_state(self, path: str | os.PathLike | None) -> None:
        """Open the state in process 0 first; all processes must have the same arguments."""
        if path is None and not self.processes.is_distributed:
            return
        identity = self.identity()
        text = json.dumps(identity, sort_keys=True)
        if any(other != text for other in self.processes.all_gather_object(text)):
            raise ValueError('the processes got different models, images, labels or settings; give all the same.')
        if path is not None:
            self.folder = folder = Path(path)
            self.processes.broadcast_object(lambda: open_run(folder, identity))
            if not all(self.processes.all_gather_object(folder.is_dir())):
                raise ValueError(f'state {folder} is not visible to all processes; choose a folder that they share.')

    def finish(self, progress: Progress | None, expected: Expected | None) -> AutoAttackResult:
        """Run all components, or the rest of them if the state has results."""
        from pyautoattack import checks
        components = self.components
        self.adversary = self._adversary()
        clean = self.processes.broadcast_object(self._clean)
        estimator = ProgressEstimator(
            progress, self.adversary, components, self.model, self.processes.world_size, expected)
        robust, x_adv = clean.clone(), self.x.cpu().clone()
        broken_by: list[str | None] = [None if correct else 'clean' for correct in clean.tolist()]
        runs, accuracy = [], {'clean': float(clean.float().mean())}
        for index, name in enumerate(components):
            results = self._component(index, robust, estimator)
            for batch in results:
                robust[batch.broken] = False
                x_adv[batch.broken] = batch.images
                for number in batch.broken.tolist():
                    broken_by[number] = name
                self.warnings.add(*batch.warnings)
            accuracy[name] = float(robust.float().mean())
            runs.append(ComponentRun(
                name=name, attacked=sum(len(b.attacked) for b in results), broken=sum(len(b.broken) for b in results),
                seconds=math.fsum(b.seconds for b in results), forwards=sum(b.forwards for b in results),
                backwards=sum(b.backwards for b in results)))
        checks.check_square_sr(accuracy, logger=self.warnings)
        if differing := int((self._correct(x_adv) != robust).sum()):
            self.warnings.add(
                f'{differing} images are classified differently in other batches; their margin is within rounding.')
        return AutoAttackResult(
            robust, clean, x_adv, components, tuple(self.warnings.messages), tuple(broken_by), tuple(runs))

    def rehearse(self) -> None:
        """Run every component with as few steps as it takes."""
        self.adversary = adversary = self._adversary()
        x = self.x.to(self.settings.device)
        y = self.model(x).argmax(1)  # the components attack only what is classified correctly
        for apgd in (adversary.apgd, adversary.apgd_targeted):
            apgd.n_restarts = apgd.eot_iter = 1
            apgd.n_iter = apgd.n_iter_orig = 10  # in L1 the package divides the steps into three parts
        adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 1
        adversary.fab.n_iter = adversary.fab.n_restarts = adversary.square.n_queries = 1
        for index, name in enumerate(self.components):
            try:
                _component_attack(adversary, name, self.components[:index], self.settings.seed).perturb(x, y)
            except Exception as error:
                raise ValueError(
                    f'{name}, a part of AutoAttack, fails on images of shape {tuple(x.shape[1:])} ({error}); leave it '
                    f'out with --autoattack PARTS, or in Python with attacks=PARTS.') from error

    def _adversary(self) -> Any:
        """The package's `AutoAttack`, with no more target classes than the model has, after its own checks."""
        from pyautoattack import AutoAttack, checks
        settings, logger = self.settings, self.warnings
        adversary = AutoAttack(
            self.model, norm=_NORMS[settings.norm][0], eps=settings.radius, seed=settings.seed, device=settings.device,
            version=settings.version, attacks=list(self.components) if settings.version == 'custom' else None)
        apgd, fab = adversary.apgd_targeted, adversary.fab
        for targeted in (apgd, fab):
            targeted.n_target_classes = min(targeted.n_target_classes, self.model.classes - 1)
        adversary.logger = adversary.apgd.logger = apgd.logger = logger
        x, y = (t[:settings.batch_size].to(settings.device) for t in (self.x, self.y))
        if settings.version != 'rand':
            checks.check_randomized(self.model, x, y, bs=len(x), logger=logger)
        classes = checks.check_range_output(self.model, x, logger=logger)
        checks.check_dynamic(self.model, x, False, logger=logger)
        checks.check_n_classes(
            classes, list(self.components), apgd.n_target_classes, fab.n_target_classes, logger=logger)
        return adversary

    def _clean(self) -> Tensor:
        """(N,) bool: classified correctly without an attack. A resumed run reads it from the state."""
        def compute(everything: Tensor) -> BatchResult:
            self.model.all_finite()
            correct = self._correct(self.x)
            if not self.model.all_finite():
                raise ValueError(
                    'the model returns NaN or infinite logits on clean images; check that its training finished.')
            return BatchResult(attacked=everything, broken=everything[~correct], images=self.x[:0].cpu())

        clean = torch.ones(len(self.x), dtype=torch.bool)
        clean[load_or_compute(self.folder, (0, 0), torch.arange(len(self.x)), compute).broken] = False
        return clean

    def _correct(self, x: Tensor) -> Tensor:
        """(N,) bool: classified correctly."""
        batches = zip(x.split(self.settings.batch_size), self.y.split(self.settings.batch_size), strict=True)
        return torch.cat([
            self.model(images.to(self.settings.device)).max(1).indices.cpu() == labels for images, labels in batches])

    def _component(self, index: int, robust: Tensor, estimator: ProgressEstimator) -> list[BatchResult]:
        """Results of a component for all batches of robust images; this process attacks its share of the batches."""
        images = robust.nonzero().flatten()
        batches = images.split(self.settings.batch_size) if len(images) else ()
        share = range(self.processes.rank, len(batches), self.processes.world_size)
        estimator.start_component(
            index, self.components[index], sum(len(batches[number]) for number in share), len(images))
        results = {}
        for number in share:
            result = results[number] = load_or_compute(
                self.folder, (index + 1, number), batches[number],
                lambda batch: self._attack(index, batch, estimator))
            estimator.end_batch(len(batches[number]), len(result.broken))
        by_number = {n: result for part in self.processes.all_gather_object(results) for n, result in part.items()}
        return [by_number[number] for number in range(len(batches))]

    def _attack(self, index: int, numbers: Tensor, estimator: ProgressEstimator) -> BatchResult:
        """Attack the images with these numbers."""
        estimator.start_batch(len(numbers))
        name, device, model = self.components[index], self.settings.device, self.model
        x, y = self.x[numbers.to(self.x.device)].to(device), self.y[numbers].to(device)
        forwards, backwards, started = model.forwards, model.backwards, time.monotonic()
        warnings, self.warnings.messages = self.warnings.messages, []
        attack = _component_attack(self.adversary, name, self.components[:index], self.settings.seed)
        model.autocast = self.settings.amp_dtype
        x_adv = attack.perturb(x.clone(), y.clone()).detach()
        model.autocast = None
        fooled = model(x_adv).max(1).indices != y
        distance = torch.linalg.vector_norm((x_adv - x).flatten(1), _NORMS[self.settings.norm][1], dim=1)
        outside = distance > self.settings.radius * (1 + 1e-4) + 1e-6
        outside |= ((x_adv < 0) | (x_adv > 1)).flatten(1).any(1)
        if bool((outside & fooled).any()):
            self.warnings.add(f'{name} left the ball or [0, 1] with some images; these do not count as broken.')
        if not model.all_finite():
            self.warnings.add(f'the model returned NaN or infinite logits under {name}; do not trust its results.')
        broken = (fooled & ~outside).cpu()
        result = BatchResult(
            attacked=numbers, broken=numbers[broken], images=x_adv.cpu()[broken], seconds=time.monotonic() - started,
            forwards=model.forwards - forwards, backwards=model.backwards - backwards,
            warnings=tuple(self.warnings.messages))
        self.warnings.messages = warnings
        return result


def _component_attack(adversary: Any, name: str, earlier: tuple[str, ...], seed: int) -> Any:
    """The attack of a component, set up as the package does before every batch."""
    if name in ('apgd-ce', 'apgd-dlr'):
        attack, attack.loss = adversary.apgd, name.removeprefix('apgd-')
    elif name in ('fab', 'fab-t'):
        attack, attack.targeted = adversary.fab, name == 'fab-t'
        if 'fab-t' in (name, *earlier):  # the package sets one restart at the first fab-t and keeps it
            attack.n_restarts = 1
    else:
        attack = adversary.square if name == 'square' else adversary.apgd_targeted
    attack.seed = seed
    return attack
