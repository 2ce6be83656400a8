"""Projected gradient descent: the one loop behind all gradient attacks of this package."""
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from timm_paf._dtypes import compute_dtype
from timm_paf.attacks.balls import ball, check_radius
from timm_paf.attacks.best import AttackState, BestAdversarial, logits_without_autocast
from timm_paf.attacks.checks import check_batch, check_logits
from timm_paf.attacks.compiled import Compile, CompiledModel, CompileSettings, Graph, bare_model, find_graph
from timm_paf.attacks.gradient import flat_ends, scaled, traced_step
from timm_paf.attacks.losses import TARGETED, Loss, find_loss
from timm_paf.attacks.noise import generated, seeded
from timm_paf.attacks.state import MODES, attack_mode, frozen_parameters
from timm_paf.attacks.steps import step_rule as find_rule
from timm_paf.attacks.threat import Eps, parse_eps

__all__ = ['PGD', 'FGSM']


class PGD:
    """PGD (Madry et al., arXiv 1706.06083): gradient ascent on the loss, projected onto the ball and [0, 1] each step.

    By default, as in training, the attack returns the images after the last step, and nothing in its loop waits for
    the device. With `restarts`, `early_stop` or a targeted loss without `target`, it returns the best adversarial image
    seen for each image: one that fools the model, else the one with the highest loss. Then only robust images continue
    to the next restart or target class, and with `early_stop` to the next step, in smaller batches. This waits for the
    device once per restart, with `early_stop` once per step. Under autocast, an image counts as fooling the model only
    if it does so without autocast, and the images that remain robust are checked once more without autocast.

    Parameters, their gradients, buffers, the mode of every submodule and the global random state are unchanged when the
    call returns or raises.

    Args:
        eps: Radius in units of [0, 1], '8/255' or a number.
        step_size: Length of a step, in the same units. By default the lengths of all steps add up to 2.5 eps, enough to
            cross the ball from any start; with equal steps this is 2.5 eps / steps.
        steps: Number of gradient steps, at least 1.
        norm: 'linf', 'l2' or 'l1'. A step in L1 changes the 1 % of the pixels with the largest gradients.
        loss: A name of `LOSSES`, or a function (logits (B, K), labels (B,)) -> values (B,), to maximise.
        restarts: Number of attempts, each from a new random start.
        early_stop: Remove images from the batch once they fool the model.
        random_start: Start at a uniformly random point of the ball instead of at the image.
        mode: Mode of the model, see `attack_mode`: 'eval', as in Dai et al. (arXiv 2110.05626), or 'train', where
            BatchNorm uses the statistics of the batch and does not update its running statistics.
        step_rule: 'fixed'; 'cosine' (from the full step size down to 0); 'momentum' (sum of normalised gradients,
            MI-FGSM).
        target_classes: Number of most likely wrong classes that a targeted loss tries in turn.
        seed: Seed of the random starts; each call continues the sequence.
        compile: Compile a whole step as one graph: True, a mode of torch.compile such as 'reduce-overhead' (CUDA
            graphs), or `CompileSettings`. All steps, radii and step sizes share the graph, and smaller batches are
            padded to its size; in mode 'train', where padding would change the statistics, batches of another size run
            uncompiled. With `restarts`, `early_stop` or a targeted loss without `target` there are more graphs, for a
            half, a quarter and an eighth of the batch, compiled when needed. If compilation fails, the attack runs
            uncompiled and warns once.

    Attributes:
        eps: The radius as a float; may be set between calls, also to 0.
        step_size: The step size as a float; may be set between calls.

    Raises:
        ValueError: If a setting is invalid.

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
                raise ValueError(f'{label} = {number!r}: expected an integer, at least 1.')
        if mode not in MODES:
            raise ValueError(f'mode = {mode!r}: expected {" or ".join(MODES)}.')
        self._value, self._compared_with = find_loss(loss)
        self.targeted = isinstance(loss, str) and loss in TARGETED
        if mode == 'train' and (early_stop or restarts > 1):
            raise ValueError(
                "mode = 'train' with early_stop or restarts: these change the batch, and in this mode logits depend on "
                "the batch. Use mode = 'eval'.")
        if restarts > 1 and not random_start:
            raise ValueError(f'restarts = {restarts} without random_start: all would be equal. Set random_start.')
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
        """The generator of the random starts on a device, created with the attack's seed."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator

    def state_dict(self) -> dict[str, Any]:
        """State of the random starts: empty before the first call."""
        if self._generator is None:
            return {}
        return {'device': str(self._generator.device), 'generator': self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the random starts from a `state_dict`."""
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
            generator: Source of the random starts instead of the attack's own, on the device of x.
            clean_logits: The model's logits (B, K) on x, if known. The loss 'kl' compares with them, and they decide
                the order of target classes. If None, they are computed where needed.
            seeds: A seed for each image, (B,), int64. The start of an image is then a function of the attack's seed,
                the image's seed and the restart, in any batch and after any number of calls.
            target: Target class (B,), int64, of a targeted loss. Success is then classification as this class; without
                it, any misclassification.

        Returns:
            Adversarial images like x, in [0, 1] exactly and in the ball up to the rounding of one addition per pixel;
            detached.

        Raises:
            ValueError: If a tensor is invalid, the ball contains all images, or the loss or the model has no gradient.
            RuntimeError: Inside torch.inference_mode, which disables gradients.
        """
        check_batch(x, y, seeds=seeds, target=target, clean_logits=clean_logits)
        check_radius(self.eps, self.norm, x)
        if seeds is not None and generator is not None:
            raise ValueError('both seeds and generator are given; expected at most one source of random starts.')
        if target is not None and not self.targeted:
            raise ValueError(
                f'target is given, but loss = {self.loss!r} is not targeted; use {" or ".join(sorted(TARGETED))}.')
        tries_classes = self.targeted and target is None
        if tries_classes and self.mode == 'train':
            raise ValueError(
                f"loss = {self.loss!r} without target in mode 'train': only robust images continue to the next class, "
                "but logits depend on the batch in this mode. Pass target, or use mode = 'eval'.")
        x = x.detach().clamp(0, 1)
        state = AttackState(
            x, y, torch.arange(len(x), device=x.device), x, clean_logits=clean_logits, seeds=seeds, target=target)
        single = not (self.early_stop or self.restarts > 1 or tries_classes)
        if self.compile is not None:
            model = CompiledModel(model, compile=self.compile, halves=not single)
        with attack_mode(model, self.mode), frozen_parameters(model), torch.enable_grad():
            if clean_logits is None and not (single and 'clean_logits' not in self._compared_with):
                with torch.no_grad():
                    state.clean_logits = check_logits(model(x), len(x))
            if state.clean_logits is not None:
                state.clean_logits = state.clean_logits.detach()
            if single:
                return self._ascend(model, self._started(state, generator), None).x_adv
            return self._best(model, state, generator, tries_classes)

    def _best(
            self, model: nn.Module, state: AttackState, generator: torch.Generator | None, tries_classes: bool,
    ) -> Tensor:
        """Restarts and target classes in turn, each on the images that are still robust."""
        assert state.clean_logits is not None
        best = BestAdversarial(model, state, targeted=self.targeted and not tries_classes)
        best.update(state, state.clean_logits, None)
        classes = 1
        if tries_classes:
            others = state.clean_logits.scatter(1, state.y[:, None], -torch.inf)
            ranking = torch.sort(others, dim=1, descending=True, stable=True).indices
            classes = min(self.target_classes, ranking.shape[1] - 1)
        for attempt in range(self.restarts * classes):
            rows = best.robust_rows()
            if not len(rows):
                break
            batch = state.take(rows)
            if tries_classes:
                batch.target = ranking[rows, attempt % classes]
            self._ascend(model, self._started(batch, generator, attempt=attempt), best)
            best.recheck(state)
        return best.x_adv

    def _started(self, state: AttackState, generator: torch.Generator | None, *, attempt: int = 0) -> AttackState:
        """The state at its starting point."""
        x = state.x
        if self.random_start:
            if state.seeds is None:
                noise = generated(x, generator or self.generator(x.device))
            else:
                noise = seeded(x, state.seeds, seed=self.seed, attempt=attempt)
            x = (x + self.ball.start(x, self.eps, noise)).clamp_(0, 1)
        state.x_adv = x
        return state

    def _ascend(self, model: nn.Module, state: AttackState, best: BestAdversarial | None) -> AttackState:
        """The loop: all steps from state.x_adv."""
        for i in range(self.steps):
            step_size = self.step_size * self.rule.size(i, self.steps)
            step = self._step if self.compile is None else self._compiled_step
            remaining = step(model, state, step_size, best)
            if remaining is None:  # all images fool the model
                return state
            state = remaining
        if best is not None:
            logits = logits_without_autocast(model, state.x_adv)
            best.update(state, logits, self._slope(logits, state)[0], exact=True)
        return state

    def _step(
            self, model: nn.Module, state: AttackState, step_size: float, best: BestAdversarial | None,
    ) -> AttackState | None:
        """One step: gradient of the loss, direction, step, projection. Returns the images that continue, or None."""
        x_adv = state.x_adv = state.x_adv.detach().requires_grad_()
        logits = check_logits(model(x_adv), len(state), differentiable=True)
        values, slope = self._slope(logits, state)
        rows = self._continuing(state, logits, values, best)
        if rows is not None and not len(rows):
            return None
        (gradient,) = torch.autograd.grad(logits, x_adv, slope)
        state.x_adv = x_adv.detach()
        if rows is not None and len(rows) < len(state):
            state, gradient = state.take(rows), gradient[rows]
        state.memory = direction = self.rule.follow(state.memory, flat_ends(gradient))
        moved = self.ball.step(state.x_adv, direction, step_size)
        state.x_adv = self.ball.project(moved, state.x, self.eps)
        return state

    def _slope(self, logits: Tensor, state: AttackState) -> tuple[Tensor, Tensor]:
        """Loss of each image, and its gradient for the logits, `scaled`.

        Returns:
            Values (B,) and the slope, like logits.
        """
        wide = logits.detach().to(compute_dtype(logits.dtype)).requires_grad_()
        with torch.enable_grad():
            values = self._value(wide, *(getattr(state, name) for name in self._compared_with))
            if values.shape != state.y.shape:
                raise ValueError(
                    f'the loss returns a tensor of shape {tuple(values.shape)}; expected one value for each of '
                    f'{len(state)} images.')
            # the sum, not the mean: the gradient of an image must not depend on the size of the batch
            (slope,) = torch.autograd.grad(values.sum(), wide)
        return values.detach(), scaled(slope, logits.dtype)

    def _continuing(
            self, state: AttackState, logits: Tensor, values: Tensor, best: BestAdversarial | None) -> Tensor | None:
        """Update the best images; return the rows that continue, or None if all do."""
        if best is None:
            return None
        fools = best.update(state, logits, values)
        # this waits for the device, which costs less than another pass
        return (~fools).nonzero().flatten() if self.early_stop else None

    @torch.no_grad()
    def _compiled_step(
            self, model: nn.Module, state: AttackState, step_size: float, best: BestAdversarial | None,
    ) -> AttackState | None:
        """Like `_step`, with a graph; without one where there is none."""
        inner = bare_model(model)
        state.x_adv = state.x_adv.detach()
        numbers = self._number(self.eps, state), self._number(step_size, state)
        graph = self._graph(inner, state, numbers, halves=best is not None)
        if graph is None:
            with torch.enable_grad():
                return self._step(inner, state, step_size, best)
        logits, values, moved, *memory = graph(inner, self._tensors(state), *numbers)
        rows = self._continuing(state, logits, values, best)
        if rows is not None and not len(rows):
            return None
        state.x_adv, state.memory = moved, memory[0] if memory else None
        return state if rows is None or len(rows) == len(state) else state.take(rows)

    def _graph(
            self, model: nn.Module, state: AttackState, numbers: tuple[Tensor, ...], *, halves: bool) -> Graph | None:
        """The compiled step for this batch; None if there is none."""
        if self.rule.remembers and state.memory is None:
            state.memory = torch.zeros_like(state.x)
        assert self.compile is not None
        return find_graph(
            model, lambda: self._checked_step(model, state),
            ('pgd', self.mode, self.norm, self._value, self.rule.follow), self._tensors(state),
            *numbers, settings=self.compile, independent=self.mode == 'eval', halves=halves)

    def _checked_step(self, model: nn.Module, state: AttackState) -> Callable:
        """The step for the compiler, after an uncompiled pass that raises clear errors for a bad model or loss."""
        with torch.enable_grad():
            self._slope(check_logits(
                model(state.x_adv.detach().requires_grad_()), len(state), differentiable=True), state)
        return traced_step(self._value, self.ball, self.rule)

    def _tensors(self, state: AttackState) -> tuple[Tensor | None, ...]:
        """The tensors that a compiled step takes."""
        memory = state.memory if self.rule.remembers else None
        return state.x_adv, state.x, memory, *(getattr(state, name) for name in self._compared_with)

    @staticmethod
    def _number(number: float, state: AttackState) -> Tensor:
        return torch.full((), number, dtype=compute_dtype(state.x.dtype), device=state.x.device)


class FGSM(PGD):
    """FGSM of Goodfellow et al. (arXiv 1412.6572): one step of length eps from the clean image.

    Args:
        eps: Radius, see `PGD`.
        norm: Norm of the ball, see `PGD`.
        loss: Loss to maximise, see `PGD`.
        mode: Mode of the model, see `PGD`.

    Raises:
        ValueError: If a setting is invalid.
    """

    def __init__(self, *, eps: Eps, norm: str = 'linf', loss: str | Loss = 'ce', mode: str = 'eval') -> None:
        super().__init__(eps=eps, step_size=eps, steps=1, norm=norm, loss=loss, random_start=False, mode=mode)
