"""AutoAttack (Croce and Hein, arXiv 2003.01690) through the package pyautoattack.

The attacks are the package's. What surrounds them is here, because the package asks for a model in eval mode and
float32, reseeds the global generators, leaves gradients on parameters, ends a tracer that was running, keeps a counter
that lets one model's warning stick to the next, fails with fewer than ten classes, and cannot go on after an interrupt.
"""
import dataclasses
import json
import math
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from timm_paf.attacks.autoattack_progress import Pace, Progress, passes_per_image
from timm_paf.attacks.autoattack_ranks import Ranks
from timm_paf.attacks.autoattack_result import AutoAttackResult, ComponentRun
from timm_paf.attacks.autoattack_savings import distance, spare
from timm_paf.attacks.autoattack_state import BatchFound, RunState, fingerprint
from timm_paf.attacks.autoattack_subject import Subject, Warnings, check_images, global_state_kept
from timm_paf.attacks.compiled import Compile, CompiledModel, CompileSettings
from timm_paf.attacks.state import eval_mode, frozen_parameters
from timm_paf.attacks.threat import Eps, parse_eps

__all__ = ['AutoAttackResult', 'autoattack', 'check_images']

_NORMS = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}
_COMPONENTS = {'standard': ('apgd-ce', 'apgd-t', 'fab-t', 'square'), 'rand': ('apgd-ce', 'apgd-dlr')}
_KNOWN = ('apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'square')


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
    """What decides the verdicts, besides model and images."""
    radius: float
    norm: str
    version: str
    components: tuple[str, ...]
    batch_size: int
    seed: int
    amp_dtype: torch.dtype | None
    spare: bool
    compile: CompileSettings | None = None

    def plain(self, device: torch.device) -> dict[str, Any]:
        """Plain values, with what else has to be the same for a run to go on."""
        from importlib import metadata
        return {
            'eps': self.radius, 'norm': self.norm, 'version': self.version, 'components': list(self.components),
            'batch_size': self.batch_size, 'seed': self.seed, 'amp_dtype': str(self.amp_dtype), 'spare': self.spare,
            **({} if self.compile is None else {'compile': [self.compile.backend, self.compile.mode]}),
            'device': device.type, 'torch': torch.__version__, 'pyautoattack': metadata.version('pyautoattack')}


def autoattack(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Eps,
        norm: str = 'linf',
        version: str = 'standard',
        attacks: Sequence[str] | None = None,
        batch_size: int = 250,
        seed: int = 0,
        device: torch.device | None = None,
        progress: Progress | None = None,
        state: str | os.PathLike | None = None,
        rank: int = 0,
        world_size: int = 1,
        amp_dtype: torch.dtype | None = None,
        spare: bool = True,
        compile: Compile = False,
) -> AutoAttackResult:
    """Run AutoAttack; only images that still stand go on to the next component, packed into full batches.

    The verdicts are those of the package called directly with the same seed, batch size and components. Processes that
    share a run take batches in turn, and a run that goes on repeats none that is finished; neither changes a verdict.

    Args:
        model: Maps images in [0, 1] to logits (B, K); left as found.
        x: Images (N, C, H, W) in [0, 1], on any device; all of them on every rank.
        y: Labels (N,), int64.
        eps: Radius, as `parse_eps` reads it.
        norm: 'linf', 'l2' or 'l1'.
        version: 'standard', 'rand' (for models that are random on purpose) or 'custom'.
        attacks: Components of 'custom': some of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square.
        batch_size: Images a batch.
        seed: Seed of every component.
        device: Where the model is; its first parameter's if None.
        progress: Called as progress(component, images done, images in all, images standing, seconds left), of this
            process's share, after every batch and now and then inside of one.
        state: Folder that keeps what is found. If it holds an interrupted run of the same model, images and settings,
            that one goes on. All ranks need to see it.
        rank: Number of this process among those that share the work through `torch.distributed`.
        world_size: How many they are.
        amp_dtype: torch.bfloat16 lets the attacks run the model under autocast; verdicts are in the model's own
            precision all the same. The attacks are weaker for it, if anything.
        spare: Leave out passes whose results the package does not use: those of images that are fooled already, and
            those of proposals of Square that change nothing. False repeats the package bit for bit. Off by itself where
            logits are random or depend on the other images of a batch.
        compile: Compile the passes, as `PGD` has it; batches that have become small are filled up to the half, the
            quarter or the eighth of batch_size. Verdicts can differ by rounding.

    Returns:
        The verdict for each image; the same on every rank.

    Raises:
        ValueError: As `check_images`, if a setting is not as expected, or if `state` is that of another run.
        OSError: If `state` cannot be written.
    """
    device = device or next((p.device for p in model.parameters()), x.device)
    warnings = Warnings()
    float32 = torch.autocast(device.type, enabled=False)
    with Ranks(rank, world_size) as ranks, float32:
        error: ValueError | OSError | None = None
        try:
            components = _components(version, attacks)
            radius = _checked(eps, norm, batch_size, seed, amp_dtype)
            classes = check_images(model, x, y, device=device)
            components = _possible(components, classes, x, norm, warnings)
            compiled = CompileSettings.of(compile)
        except ValueError as caught:
            error = caught
        ranks.agree(error)
        x, y = x.detach().float().contiguous(), y.detach().cpu()
        settings = _Settings(
            radius=radius, norm=norm, version=version, components=components, batch_size=batch_size, seed=seed,
            amp_dtype=amp_dtype, spare=spare, compile=compiled)
        store = _open_state(state, model, x, y, settings.plain(device), ranks)
        if compiled is not None:
            compiled = dataclasses.replace(compiled, batch_size=compiled.batch_size or min(batch_size, len(x)))
            model = CompiledModel(model, compile=compiled, halves=True)
        subject = Subject(model, classes=classes, amp_dtype=amp_dtype)
        with eval_mode(model), frozen_parameters(model), global_state_kept(device), torch.no_grad():
            run = _Run(subject, x, y, settings, device=device, ranks=ranks, store=store, warnings=warnings)
            return run.finish(progress)


def _components(version: str, attacks: Sequence[str] | None) -> tuple[str, ...]:
    if version not in (*_COMPONENTS, 'custom') or (version == 'custom') != (attacks is not None):
        raise ValueError(
            f'version = {version!r} with attacks = {attacks}: expected standard or rand without a list of attacks, or '
            'custom with one.')
    if attacks is None:
        return _COMPONENTS[version]
    if isinstance(attacks, str) or not attacks or not set(attacks) <= set(_KNOWN):
        raise ValueError(f'attacks = {attacks!r}: expected a list of some of {", ".join(_KNOWN)}.')
    return tuple(attacks)


def _checked(eps: Eps, norm: str, batch_size: int, seed: int, amp_dtype: torch.dtype | None) -> float:
    """The radius, if it and the other settings are as expected."""
    if norm not in _NORMS:
        raise ValueError(f'norm = {norm!r}: expected {", ".join(_NORMS)}.')
    for name, value, least in (('batch_size', batch_size, 1), ('seed', seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f'{name} = {value!r}: expected a whole number, {least} or more.')
    if amp_dtype not in (None, torch.bfloat16):
        raise ValueError(f'amp_dtype = {amp_dtype}: expected torch.bfloat16; in float16 small gradients become 0.')
    return parse_eps(eps, norm=norm)


def _possible(
        components: tuple[str, ...],
        classes: int,
        x: Tensor,
        norm: str,
        warnings: Warnings,
) -> tuple[str, ...]:
    """The components that work with so many classes and such images; those left out are warned of."""
    if 'square' in components and (x.dim() != 4 or (norm != 'linf' and min(x.shape[-2:]) < 5)):
        least = '' if norm == 'linf' else ' of at least 5 x 5 pixels'
        raise ValueError(
            f'Square needs images (N, C, H, W){least} in {norm}, got {tuple(x.shape)}; use version custom without it.')
    # the (targeted) DLR loss compares the three (four) largest logits
    needs = {'apgd-t': 4, 'apgd-dlr': 3}
    impossible = [name for name in components if classes < needs.get(name, 2)]
    warnings.add(*(f'{name} left out: its loss needs more than {classes} classes.' for name in impossible))
    left = tuple(name for name in components if name not in impossible)
    if not left:
        raise ValueError(f'none of {", ".join(components)} works with {classes} classes; choose other attacks.')
    return left


def _open_state(
        path: str | os.PathLike | None,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        settings: dict[str, Any],
        ranks: Ranks,
) -> RunState:
    """The state, opened by the first rank before the others, who must be about the same run."""
    if path is None and ranks.world_size == 1:
        return RunState(None, {})
    identity = fingerprint(model, x, y, settings)
    text = json.dumps(identity, sort_keys=True)
    if any(other != text for other in ranks.gather(text)):
        raise ValueError('ranks differ in model, images, labels or settings; give all of them the same.')
    store, error = RunState(None, {}), None
    for turn in (True, False):
        try:
            if (ranks.rank == 0) == turn:
                store = RunState(path, identity, tidy=turn)
        except (ValueError, OSError) as caught:
            error = caught
        ranks.agree(error)
    return store


class _Run:
    """One evaluation, inside all that keeps the world as it was."""

    def __init__(
            self,
            subject: Subject,
            x: Tensor,
            y: Tensor,
            settings: _Settings,
            *,
            device: torch.device,
            ranks: Ranks,
            store: RunState,
            warnings: Warnings,
    ) -> None:
        self.subject, self.x, self.y, self.settings = subject, x, y, settings
        self.device, self.ranks, self.store, self.warnings = device, ranks, store, warnings
        self.adversary = _adversary(subject, settings, device, warnings)

    def finish(self, progress: Progress | None) -> AutoAttackResult:
        """All components, from where the state stands."""
        components = self.settings.components
        self._checks()
        clean = self._clean()
        costs = [passes_per_image(self.adversary, name, self.subject.classes) for name in components]
        pace = Pace(progress, costs, self.subject, self.ranks.world_size)
        robust, x_adv = clean.clone(), self.x.cpu().clone()
        broken_by: list[str | None] = [None if right else 'clean' for right in clean.tolist()]
        runs, accuracy = [], {'clean': float(clean.float().mean())}
        for index, name in enumerate(components):
            found = self._component(index, robust, pace)
            for batch in found:
                robust[batch.broken] = False
                x_adv[batch.broken] = batch.images
                for number in batch.broken.tolist():
                    broken_by[number] = name
                self.warnings.add(*batch.warnings)
            accuracy[name] = float(robust.float().mean())
            runs.append(ComponentRun(
                name=name, attacked=sum(len(b.attacked) for b in found), broken=sum(len(b.broken) for b in found),
                seconds=math.fsum(b.seconds for b in found), forwards=sum(b.forwards for b in found),
                backwards=sum(b.backwards for b in found)))
        self._afterwards(accuracy, robust, clean, x_adv)
        return AutoAttackResult(
            robust, clean, x_adv, components, tuple(self.warnings.messages), tuple(broken_by), tuple(runs))

    def _checks(self) -> None:
        """The package's own checks on the first batch, in its order, and ours."""
        from pyautoattack import checks
        x, y = (t[:self.settings.batch_size].to(self.device) for t in (self.x, self.y))
        logger, names = self.warnings.logger, list(self.settings.components)
        if self.settings.version != 'rand':
            checks.check_randomized(self.subject, x, y, bs=len(x), logger=logger)
        classes = checks.check_range_output(self.subject, x, logger=logger)
        checks.check_dynamic(self.subject, x, False, logger=logger)
        checks.check_n_classes(
            classes, names, self.adversary.apgd_targeted.n_target_classes, self.adversary.fab.n_target_classes,
            logger=logger)
        if self.settings.spare and self.settings.version != 'rand':
            if self.subject.minds_its_own_images(x[:32]):
                spare(self.adversary, self.subject)
            else:
                self.warnings.add(
                    'the logits of an image depend on the other images of its batch, or are random; no pass is spared.')

    def _clean(self) -> Tensor:
        """(N,) bool: classified correctly. A run that goes on takes what it found at first."""
        everything = torch.arange(len(self.x))
        found = self.store.load(0, 0, everything) if self.ranks.rank == 0 else None
        if found is None:
            self.subject.all_finite()
            correct = self._correct(self.x)
            if not self.subject.all_finite():
                raise ValueError('the model returns NaN or infinite logits on clean images; was it trained to the end?')
            wrong = (~correct).nonzero().flatten()
            found = BatchFound(
                attacked=everything, broken=wrong, images=self.x[:0].cpu(), seconds=0., forwards=0, backwards=0,
                warnings=())
            if self.ranks.rank == 0:
                self.store.save(0, 0, found)
        clean = torch.ones(len(self.x), dtype=torch.bool)
        clean[self.ranks.gather(found.broken)[0]] = False
        return clean

    def _correct(self, x: Tensor) -> Tensor:
        return torch.cat([
            self.subject(images.to(self.device)).max(1)[1].cpu() == labels
            for images, labels in zip(
                x.split(self.settings.batch_size), self.y.split(self.settings.batch_size), strict=True)])

    def _component(self, index: int, robust: Tensor, pace: Pace) -> list[BatchFound]:
        """What a component finds in each of its batches; this rank attacks its share of them."""
        standing = robust.nonzero().flatten()
        batches = [(number, b) for number, b in enumerate(standing.split(self.settings.batch_size)) if len(b)]
        share = batches[self.ranks.rank::self.ranks.world_size]
        name = self.settings.components[index]
        pace.component(index, name, sum(len(b) for _, b in share), len(standing))
        mine = {}
        for number, images in share:
            found = self.store.load(index + 1, number, images)
            attacked = found is None
            if found is None:
                pace.begin(len(images))
                found = self._attack(index, images)
                self.store.save(index + 1, number, found)
            pace.end(len(images), len(found.broken), attacked)
            mine[number] = found
        everyones = {number: found for part in self.ranks.gather(mine) for number, found in part.items()}
        return [everyones[number] for number, _ in batches]

    def _attack(self, index: int, numbers: Tensor) -> BatchFound:
        """Attack the images of these numbers with a component."""
        name = self.settings.components[index]
        x, y = self.x[numbers.to(self.x.device)].to(self.device), self.y[numbers].to(self.device)
        before = self.subject.forwards, self.subject.backwards
        warnings, self.warnings.messages = self.warnings.messages, []
        started = time.monotonic()
        attack = _prepare(self.adversary, name, self.settings.components[:index], self.settings.seed)
        with self.subject.mixed():
            adv = attack.perturb(x.clone(), y.clone()).detach()
        broken = self.subject(adv).max(1)[1] != y
        outside = distance(adv - x, _NORMS[self.settings.norm]) > self.settings.radius * (1 + 1e-4) + 1e-6
        outside |= ((adv < 0) | (adv > 1)).flatten(1).any(1)
        if bool((outside & broken).any()):
            self.warnings.add(f'{name} left the ball or [0, 1] with some images; these do not count as broken.')
        if not self.subject.all_finite():
            self.warnings.add(f'the model returned NaN or infinite logits under {name}; its verdicts may be accidents.')
        broken = (broken & ~outside).cpu()
        found = BatchFound(
            attacked=numbers, broken=numbers[broken], images=adv.cpu()[broken], seconds=time.monotonic() - started,
            forwards=self.subject.forwards - before[0], backwards=self.subject.backwards - before[1],
            warnings=tuple(self.warnings.messages))
        self.warnings.messages = warnings
        return found

    def _afterwards(self, accuracy: dict[str, float], robust: Tensor, clean: Tensor, x_adv: Tensor) -> None:
        """The package's check of Square against the others, and whether the images give the verdicts again."""
        from pyautoattack import checks
        checks.check_square_sr(accuracy, logger=self.warnings.logger)
        differing = int((self._correct(x_adv) != robust).sum())
        if differing:
            self.warnings.add(
                f'{differing} images get another verdict when they are classified in other batches; their margin is '
                f'no more than rounding.')


def _adversary(subject: Subject, settings: _Settings, device: torch.device, warnings: Warnings) -> Any:
    """The package's object with as many target classes as there are."""
    from pyautoattack import AutoAttack
    adversary = AutoAttack(
        subject, norm=_NORMS[settings.norm], eps=settings.radius, seed=settings.seed, device=device,
        version=settings.version, attacks=list(settings.components) if settings.version == 'custom' else None)
    for targeted in (adversary.apgd_targeted, adversary.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, subject.classes - 1)
    adversary.logger = adversary.apgd.logger = adversary.apgd_targeted.logger = warnings.logger
    return adversary


def _prepare(adversary: Any, name: str, earlier: tuple[str, ...], seed: int) -> Any:
    """The attack object of a component, set as the package sets it before every batch."""
    if name in ('apgd-ce', 'apgd-dlr'):
        attack, attack.loss = adversary.apgd, name.removeprefix('apgd-')
    elif name in ('fab', 'fab-t'):
        attack, attack.targeted = adversary.fab, name == 'fab-t'
        if 'fab-t' in (name, *earlier):  # once targeted, it has one restart from then on
            attack.n_restarts = 1
    else:
        attack = {'apgd-t': adversary.apgd_targeted, 'square': adversary.square}[name]
    attack.seed = seed
    return attack
