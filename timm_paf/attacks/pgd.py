"""Projected gradient descent: the one loop behind every gradient attack here."""
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from timm_paf.attacks.balls import ball, check_radius
from timm_paf.attacks.checks import check_batch, check_logits
from timm_paf.attacks.compiled import Compile, CompiledModel, CompileSettings, Graph, bare_model, find_graph
from timm_paf.attacks.gradient import flat_ends, scaled, traced_step
from timm_paf.attacks.losses import TARGETED, Loss, find_loss
from timm_paf.attacks.noise import generated, seeded, wide_dtype
from timm_paf.attacks.state import MODES, attack_mode, frozen_parameters
from timm_paf.attacks.steps import step_rule as find_rule
from timm_paf.attacks.threat import Eps, parse_eps
from timm_paf.attacks.worst import Images, Worst, float32_logits

__all__ = ['PGD', 'FGSM']


class PGD:
    """PGD of Madry et al. (arXiv 1706.06083): steps up the loss, each projected back into the ball and into [0, 1].

    As a plain attack, which is what training uses, it returns where the last step ends, as the papers do, and nothing
    in the loop waits for the device. With restarts, early_stop or a targeted loss that chooses its targets it returns
    the worst that it has seen of each image: a version that fools the model, else the one with the highest loss. Only
    images still standing go on to the next restart or target, and with early_stop to the next step, in smaller batches;
    the device is waited for once a restart, with early_stop once a step. Under autocast the model counts as fooled only
    if it is so without autocast, and what is kept of the images still standing is looked at once more without.

    Parameters, their gradients, buffers, the training flag of every submodule and the global random state are as
    before when the call returns or raises.

    Args:
        eps: Radius in units of [0, 1], '8/255' or a number.
        step_size: Length of a step, as eps; by default all steps together are 2.5 eps long, with which the far side of
            the ball is reached from any start: 2.5 eps / steps where the steps are equal.
        steps: Number of gradient steps, at least 1.
        norm: 'linf', 'l2' or 'l1'. An L1 step moves the hundredth of the pixels with the largest gradients.
        loss: A name of `LOSSES`, or a function (logits (B, K), labels (B,)) -> values (B,) for the attack to climb.
        restarts: Attempts, each from a new start.
        early_stop: Let images leave the batch once they fool the model.
        random_start: Start at a uniformly random point of the ball instead of at the image.
        mode: The model's mode, `attack_mode`: 'eval', as in the trainer of Dai et al. (arXiv 2110.05626), or 'train',
            in which BatchNorm uses the batch's statistics and leaves its own as they are.
        step_rule: 'fixed'; 'cosine', from the full step to none; 'momentum', the sum of normalised gradients (MI-FGSM).
        target_classes: How many of the likeliest wrong classes a targeted loss tries in turn.
        seed: Seed of the random starts; each call continues the sequence.
        compile: Compile a step, with the pass through the model both ways, the rule and the projection, as one graph:
            True, or a mode of torch.compile ('reduce-overhead' for CUDA graphs), or `CompileSettings`. All steps, radii
            and step sizes share it, and smaller batches are filled up to it; in mode 'train', where that would change
            the statistics, batches of another size than the first run uncompiled. With restarts, early_stop or chosen
            targets, graphs for the half, the quarter and the eighth of the batch are made as well when they are needed.
            If compiling fails, the attack runs without, and one warning says so.

    Attributes:
        eps: The radius as a float; may be set between calls, 0 included.
        step_size: Likewise.

    Raises:
        ValueError: If a setting is not as expected.

    Example:
        >>> x_adv = PGD(eps='8/255', step_size='2/255', steps=10)(model, x, y)
    """

    def __init__(
            self,
            *,
            eps: Eps,
            step_size: Eps | None = None,
            steps: int = 10,
            norm: str = 'linf',
            loss: str | Loss = 'ce',
            restarts: int = 1,
            early_stop: bool = False,
            random_start: bool = True,
            mode: str = 'eval',
            step_rule: str = 'fixed',
            target_classes: int = 9,
            seed: int = 0,
            compile: Compile = False,
    ) -> None:
        self.ball = ball(norm)
        self.eps = parse_eps(eps, norm=norm)
        for label, number in (('steps', steps), ('restarts', restarts), ('target_classes', target_classes)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f'{label} = {number!r}: expected a whole number, 1 or more.')
        if mode not in MODES:
            raise ValueError(f'mode = {mode!r}: expected {" or ".join(MODES)}.')
        self._value, self._compared_with = find_loss(loss)
        self.targeted = isinstance(loss, str) and loss in TARGETED
        if mode == 'train' and (early_stop or restarts > 1):
            raise ValueError(
                "mode = 'train' with early_stop or restarts: an image's logits depend on its batch there, and the "
                "batch would change. Use mode = 'eval'.")
        if restarts > 1 and not random_start:
            raise ValueError(f'restarts = {restarts} without random_start: each would be the same.')
        self.rule = find_rule(step_rule)
        total = sum(self.rule.size(i, steps) for i in range(steps))
        self.step_size = 2.5 * self.eps / total if step_size is None else parse_eps(
            step_size, label='step_size', norm=norm)
        self.steps, self.norm, self.loss, self.restarts = steps, norm, loss, restarts
        self.early_stop, self.random_start, self.mode, self.step_rule = early_stop, random_start, mode, step_rule
        self.target_classes, self.seed = target_classes, seed
        self.compile = CompileSettings.of(compile)
        self._generator: torch.Generator | None = None

    def __repr__(self) -> str:
        loss = self.loss if isinstance(self.loss, str) else getattr(self.loss, '__name__', 'function')
        return (
            f'{type(self).__name__}(norm={self.norm!r}, eps={self.eps:g}, step_size={self.step_size:g}, '
            f'steps={self.steps}, loss={loss!r}, restarts={self.restarts})')

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator of the random starts on a device; the sequence begins with the seed."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator

    def state_dict(self) -> dict[str, Any]:
        """Where the sequence of random starts stands: empty before the first call."""
        if self._generator is None:
            return {}
        return {'device': str(self._generator.device), 'generator': self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._generator = None
        if state:
            self._generator = torch.Generator(state['device'])
            self._generator.set_state(state['generator'].cpu())

    def __call__(
            self,
            model: nn.Module,
            x: Tensor,
            y: Tensor,
            *,
            generator: torch.Generator | None = None,
            clean_logits: Tensor | None = None,
            seeds: Tensor | None = None,
            target: Tensor | None = None,
    ) -> Tensor:
        """Attack a batch.

        Args:
            model: Maps images to logits (B, K).
            x: Images (B, …), floating-point, in [0, 1].
            y: Labels (B,), int64.
            generator: Source of the random starts in place of the attack's own, on x's device.
            clean_logits: The model's logits (B, K) on x where they are known: what 'kl' compares with, and what
                targets are chosen by. Computed where they are needed if None.
            seeds: A seed of each image, (B,), int64: the start of an image is a function of (the attack's seed, the
                image's, the restart), whatever batch it is in and whatever came before.
            target: The class (B,) that a targeted loss is after. An image then counts as fooled once it is classified
                as that; without, once it is misclassified.

        Returns:
            Images like x, in [0, 1] exactly and in the ball up to the rounding of one addition a pixel; detached.

        Raises:
            ValueError: If a tensor is not as expected, the radius covers all images, or the loss or the model gives
                nothing that can be climbed.
            RuntimeError: Inside torch.inference_mode, where nothing can be differentiated.
        """
        check_batch(x, y, seeds=seeds, target=target, clean_logits=clean_logits)
        check_radius(self.eps, self.norm, x)
        if seeds is not None and generator is not None:
            raise ValueError('both seeds and generator are given; expected at most one source of random starts.')
        if target is not None and not self.targeted:
            raise ValueError(
                f'target is given, and loss = {self.loss!r} has none; use {" or ".join(sorted(TARGETED))}.')
        x = x.detach().clamp(0, 1)
        images = Images(
            x, y, torch.arange(len(x), device=x.device), x, clean_logits=clean_logits, seeds=seeds, target=target)
        chooses = self.targeted and target is None
        if chooses and self.mode == 'train':
            raise ValueError(
                f"loss = {self.loss!r} without target in mode 'train': only images still standing go on to the next "
                "class, and an image's logits depend on its batch there. Give target, or use mode = 'eval'.")
        plain = not (self.early_stop or self.restarts > 1 or chooses)
        if self.compile is not None:
            model = CompiledModel(model, compile=self.compile, halves=not plain)
        with attack_mode(model, self.mode), frozen_parameters(model), torch.enable_grad():
            if clean_logits is None and not (plain and 'clean_logits' not in self._compared_with):
                with torch.no_grad():
                    images.clean_logits = check_logits(model(x), len(x))
            if images.clean_logits is not None:
                images.clean_logits = images.clean_logits.detach()
            if plain:
                self._start(images, generator, attempt=0)
                return self._climb(model, images, None).x_adv
            return self._worst(model, images, generator, chooses)

    def _worst(
            self, model: nn.Module, images: Images, generator: torch.Generator | None, chooses: bool) -> Tensor:
        """Restarts and targets in turn, of the images that still stand."""
        assert images.clean_logits is not None
        worst = Worst(model, images, wanted=self.targeted and not chooses)
        worst.see(images, images.clean_logits, None)
        ranks = 1
        if chooses:
            others = images.clean_logits.scatter(1, images.y[:, None], -torch.inf)
            ranking = torch.sort(others, dim=1, descending=True, stable=True).indices
            ranks = min(self.target_classes, ranking.shape[1] - 1)
        for attempt in range(self.restarts * ranks):
            rows = worst.standing()
            if not len(rows):
                break
            batch = images.take(rows)
            if chooses:
                batch.target = ranking[rows, attempt % ranks]
            self._start(batch, generator, attempt=attempt)
            self._climb(model, batch, worst)
            worst.settle(images)
        return worst.x_adv

    def _start(self, images: Images, generator: torch.Generator | None, *, attempt: int) -> None:
        x = images.x
        images.x_adv = x
        if self.random_start:
            if images.seeds is None:
                noise = generated(x, generator or self.generator(x.device))
            else:
                noise = seeded(x, images.seeds, seed=self.seed, attempt=attempt)
            images.x_adv = (x + self.ball.start(x, self.eps, noise)).clamp_(0, 1)

    def _climb(self, model: nn.Module, images: Images, worst: Worst | None) -> Images:
        """The loop: from images.x_adv up the loss."""
        inner = model if self.compile is None else bare_model(model)
        eps = None if self.compile is None else self._number(self.eps, images)
        for i in range(self.steps):
            images.x_adv = images.x_adv.detach()
            step_size = self.step_size * self.rule.size(i, self.steps)
            graph: Graph | None = None
            numbers: tuple[Tensor, ...] = ()
            if eps is not None:
                numbers = eps, self._number(step_size, images)
                graph = self._graph(inner, images, numbers, halves=worst is not None)
            left = (
                self._step(inner, images, step_size, worst) if graph is None
                else self._compiled_step(graph, inner, images, numbers, worst))
            if left is None:
                return images
            images = left
        if worst is not None:
            logits = float32_logits(model, images.x_adv)
            worst.see(images, logits, self._slope(logits, images)[0], confirmed=True)
        return images

    def _step(
            self, model: nn.Module, images: Images, step_size: float, worst: Worst | None) -> Images | None:
        """One step; returns the images that go on, None if there are none."""
        x_adv = images.x_adv = images.x_adv.requires_grad_()
        logits = check_logits(model(x_adv), len(images), differentiable=True)
        values, slope = self._slope(logits, images)
        rows = self._going_on(images, logits, values, worst)
        if rows is not None and not len(rows):
            return None
        (gradient,) = torch.autograd.grad(logits, x_adv, slope)
        images.x_adv = x_adv.detach()
        if rows is not None and len(rows) < len(images):
            images, gradient = images.take(rows), gradient[rows]
        images.memory = direction = self.rule.follow(images.memory, flat_ends(gradient))
        moved = self.ball.step(images.x_adv, direction, step_size)
        images.x_adv = self.ball.project(moved, images.x, self.eps)
        return images

    def _going_on(
            self, images: Images, logits: Tensor, values: Tensor, worst: Worst | None) -> Tensor | None:
        """Take note of where the attack stands; returns the rows that go on, None if all do."""
        if worst is None:
            return None
        fools = worst.see(images, logits, values)
        # waits for the device: a pass more costs more than that
        return (~fools).nonzero().flatten() if self.early_stop else None

    def _graph(
            self, model: nn.Module, images: Images, numbers: tuple[Tensor, ...], *, halves: bool) -> Graph | None:
        """The compiled step for these images, if there can be one."""
        if self.rule.remembers and images.memory is None:
            images.memory = torch.zeros_like(images.x)
        assert self.compile is not None
        with torch.no_grad():
            return find_graph(
                model, lambda: self._checked_step(model, images),
                ('pgd', self.mode, self.norm, self._value, self.rule.follow), self._tensors(images),
                *numbers, settings=self.compile, independent=self.mode == 'eval', halves=halves)

    def _checked_step(self, model: nn.Module, images: Images) -> Callable:
        """The step for the compiler, after a look at the model and the loss whose errors say what is wrong."""
        with torch.enable_grad():
            self._slope(check_logits(
                model(images.x_adv.detach().requires_grad_()), len(images), differentiable=True), images)
        return traced_step(self._value, self.ball, self.rule)

    def _tensors(self, images: Images) -> tuple[Tensor | None, ...]:
        """What a compiled step takes of the images."""
        memory = images.memory if self.rule.remembers else None
        return images.x_adv, images.x, memory, *(getattr(images, name) for name in self._compared_with)

    @staticmethod
    def _number(number: float, images: Images) -> Tensor:
        return torch.full((), number, dtype=wide_dtype(images.x.dtype), device=images.x.device)

    @torch.no_grad()
    def _compiled_step(
            self,
            graph: Graph,
            model: nn.Module,
            images: Images,
            numbers: tuple[Tensor, ...],
            worst: Worst | None,
    ) -> Images | None:
        """As `_step`, by a graph; numbers are the radius and the length of the step."""
        logits, values, moved, *memory = graph(model, self._tensors(images), *numbers)
        rows = self._going_on(images, logits, values, worst)
        if rows is not None and not len(rows):
            return None
        images.x_adv, images.memory = moved, memory[0] if memory else None
        return images if rows is None or len(rows) == len(images) else images.take(rows)

    def _slope(self, logits: Tensor, images: Images) -> tuple[Tensor, Tensor]:
        """Loss of each image, and its gradient to the logits, `scaled`.

        Returns:
            Values (B,) and the slope, like logits.
        """
        wide = logits.detach().to(wide_dtype(logits.dtype)).requires_grad_()
        with torch.enable_grad():
            values = self._value(wide, *(getattr(images, name) for name in self._compared_with))
            if values.shape != images.y.shape:
                raise ValueError(
                    f'the loss returns a tensor of shape {tuple(values.shape)}; expected one value for each of '
                    f'{len(images)} images.')
            # a sum, not a mean: an image's gradient must not depend on how many others are in the batch
            (slope,) = torch.autograd.grad(values.sum(), wide)
        return values.detach(), scaled(slope, logits.dtype)


class FGSM(PGD):
    """FGSM of Goodfellow et al. (arXiv 1412.6572): one step of length eps from the image.

    Args:
        eps: Radius, as `PGD`.
        norm: As `PGD`.
        loss: As `PGD`.
        mode: As `PGD`.

    Raises:
        ValueError: If a setting is not as expected.
    """

    def __init__(self, *, eps: Eps, norm: str = 'linf', loss: str | Loss = 'ce', mode: str = 'eval') -> None:
        super().__init__(eps=eps, step_size=eps, steps=1, norm=norm, loss=loss, random_start=False, mode=mode)
