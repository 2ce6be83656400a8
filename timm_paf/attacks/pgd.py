"""Projected gradient descent: the one loop behind all gradient attacks of this package."""
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from timm_paf._dtypes import compute_dtype
from timm_paf.attacks.balls import BALLS, Number, check_radius
from timm_paf.attacks.best import AttackState, BestAdversarial, logits_without_autocast
from timm_paf.attacks.capture import graphs_of
from timm_paf.attacks.checks import PixelCheck, check_batch, check_integers, check_logits, choose
from timm_paf.attacks.compiled import Compile, CompiledModel, CompileSettings
from timm_paf.attacks.losses import Loss, find_loss
from timm_paf.attacks.random_start import generated, seeded
from timm_paf.attacks.state import attack_mode, frozen_parameters
from timm_paf.attacks.steps import STEP_RULES, scaled
from timm_paf.attacks.threat import Eps, parse_eps

__all__ = ['PGD', 'FGSM']

Step = tuple[Tensor, ...]  # logits, losses, the next images, and the direction of the step if the rule remembers it


class PGD:
    r"""PGD (Madry et al., arXiv 1706.06083): gradient ascent on the loss, projected onto the ball and [0, 1] each step.

    .. math::
        x_{t+1} = \Pi_{B_\varepsilon(x)\,\cap\,[0, 1]^d}\big(x_t + \eta\, d(\nabla_{x_t} L(f(x_t), y))\big),
        \qquad d(g) = \operatorname{sign} g \text{ for Linf}, \quad g / \lVert g\rVert_2 \text{ for L2}

    By default, as in training, the attack returns the images after the last step, and nothing in its loop waits for
    the device. With `restarts`, `early_stop` or a targeted loss without `target`, it returns the best adversarial image
    seen for each image: one that fools the model (without autocast), else the one with the highest loss. Only robust
    images continue to the next restart or target class. The model and the global random state are left as found.

    Args:
        eps: Radius in units of [0, 1], '8/255' or a number. The attribute is a float and may be set, also to 0.
        step_size: Length of a step, in the same units; the attribute may be set. By default the lengths of all steps
            add up to 2.5 eps, enough to cross the ball from any start.
        steps: Number of gradient steps, at least 1.
        norm: 'linf', 'l2' or 'l1'. A step in L1 changes the 1 % of the pixels with the largest gradients.
        loss: A name of `LOSSES`, or a function (logits (B, K), labels (B,)) -> values (B,), to maximise.
        restarts: Number of attempts, each from a new random start.
        early_stop: Remove images from the batch once they fool the model; waits for the device at every step.
        random_start: Start at a uniformly random point of the ball instead of at the image.
        mode: 'eval', as in Dai et al. (arXiv 2110.05626), or 'train'; see `attack_mode`.
        step_rule: 'fixed'; 'cosine', from the full step size down to 0; 'momentum', a sum of normalised gradients.
        target_classes: Number of most likely wrong classes that a targeted loss tries in turn.
        seed: Seed of the random starts; each call continues the sequence.
        compile: Compile the model: True, a mode of torch.compile such as 'reduce-overhead', or `CompileSettings`; see
            `CompiledModel`. It runs uncompiled in mode 'train'. Its steps are not captured.
        capture: 'auto': on a GPU, run the steps as CUDA graphs, which take no time on the host; the first attack on a
            batch of a new size records one. Results are those of the same kernels. 'none': run every step from Python.

    Raises:
        ValueError: If a setting is invalid.

    Example:
        >>> x_adv = PGD(eps='8/255', step_size='2/255', steps=10)(model, x, y)
    """

    def __init__(
            self, *, eps: Eps, step_size: Eps | None = None, steps: int = 10, norm: str = 'linf',
            loss: str | Loss = 'ce', restarts: int = 1, early_stop: bool = False, random_start: bool = True,
            mode: str = 'eval', step_rule: str = 'fixed', target_classes: int = 9, seed: int = 0,
            compile: Compile = False, capture: str = 'auto',
    ) -> None:
        self.ball, self.rule = choose('norm', norm, BALLS), choose('step_rule', step_rule, STEP_RULES)
        self.eps = parse_eps(eps, norm=norm)
        check_integers(1, steps=steps, restarts=restarts, target_classes=target_classes)
        choose('mode', mode, dict.fromkeys(['eval', 'train']))
        choose('capture', capture, dict.fromkeys(['auto', 'none']))
        self._value, self._compared_with = find_loss(loss)
        self.targeted = 'target' in self._compared_with
        if mode == 'train' and (early_stop or restarts > 1):
            raise ValueError("mode = 'train' with early_stop or restarts changes the batch of the logits. Use 'eval'.")
        if restarts > 1 and not random_start:
            raise ValueError(f'restarts = {restarts} without random_start: all would be equal. Set random_start.')
        self.step_size = (
            parse_eps(step_size, label='step_size', norm=norm) if step_size is not None
            else 2.5 * self.eps / sum(self.rule.size(i, steps) for i in range(steps)))
        self.steps, self.norm, self.loss, self.restarts = steps, norm, loss, restarts
        self.early_stop, self.random_start, self.mode, self.step_rule = early_stop, random_start, mode, step_rule
        self.target_classes, self.seed = target_classes, seed
        self.compile, self.capture = CompileSettings.of(compile), capture
        self._generator: torch.Generator | None = None
        self._check_pixels = PixelCheck()

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
        generator = self._generator
        return {} if generator is None else {'device': str(generator.device), 'generator': generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the random starts from a `state_dict`."""
        self._generator = torch.Generator(state['device']) if state else None
        if self._generator is not None:
            self._generator.set_state(state['generator'].cpu())

    def __call__(
            self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None,
            clean_logits: Tensor | None = None, seeds: Tensor | None = None, target: Tensor | None = None,
    ) -> Tensor:
        """Attack a batch.

        Args:
            model: Maps images to logits (B, K).
            x: Images (B, …), floating-point, in [0, 1].
            y: Labels (B,), int64.
            generator: Source of the random starts instead of the attack's own, on the device of x.
            clean_logits: The model's logits (B, K) on x for the loss 'kl' and the order of target classes; computed
                where needed if None.
            seeds: A seed for each image, (B,), int64. The start of an image is then a function of the attack's seed,
                the image's seed and the restart, in any batch and after any number of calls.
            target: Target class (B,), int64, of a targeted loss. Success is then classification as this class.

        Returns:
            Detached images like x, in [0, 1] exactly, in the ball up to the rounding of one addition per pixel.

        Raises:
            ValueError: If a tensor is invalid, pixels are not in [0, 1] (on a GPU: see `PixelCheck`), the ball contains
                all images, or the loss or the model has no gradient.
            RuntimeError: Inside torch.inference_mode, which disables gradients.
        """
        if torch.is_inference_mode_enabled() or x.is_inference():
            raise RuntimeError('PGD needs gradients, which torch.inference_mode disables; use torch.no_grad instead.')
        check_batch(x, y=y, seeds=seeds, target=target, clean_logits=clean_logits)
        check_radius(self.eps, self.norm, x)
        self._check_pixels(x)
        if seeds is not None and generator is not None:
            raise ValueError('both seeds and generator are given; expected at most one source of random starts.')
        if target is not None and not self.targeted:
            raise ValueError(f'target is given, but loss = {self.loss!r} has none; use ce-targeted or dlr-targeted.')
        tries_classes = self.targeted and target is None
        if tries_classes and self.mode == 'train':
            raise ValueError(
                f"loss = {self.loss!r} without target in mode 'train': pass target, or use mode 'eval'.")
        x = x.detach().clamp(0, 1)
        state = AttackState(x, y, torch.arange(len(x), device=x.device), x, target=target, seeds=seeds)
        packs = self.early_stop or self.restarts > 1 or tries_classes
        if self.compile is not None:
            model = CompiledModel(model, compile=self.compile, halves=packs)
        with attack_mode(model, self.mode), frozen_parameters(model), torch.enable_grad():
            if clean_logits is not None:
                state.clean_logits = clean_logits.detach()
            elif packs or 'clean_logits' in self._compared_with:
                with torch.no_grad():
                    state.clean_logits = check_logits(model(x), len(x))
            if packs:
                return self._best(model, state, generator, tries_classes)
            self._start(state, generator)
            self._ascend(model, state)
            return state.x_adv

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
            self._start(batch, generator, attempt)
            self._ascend(model, batch, best)
            best.recheck(state)
        return best.x_adv

    def _start(self, state: AttackState, generator: torch.Generator | None, attempt: int = 0) -> None:
        state.x_adv = x = state.x
        if self.random_start:
            noise = (
                generated(x, generator or self.generator(x.device)) if state.seeds is None
                else seeded(x, state.seeds, seed=self.seed, attempt=attempt))
            state.x_adv = (x + self.ball.start(x, self.eps, noise)).clamp_(0, 1)

    def _ascend(self, model: nn.Module, state: AttackState, best: BestAdversarial | None = None) -> None:
        """The loop: all steps from state.x_adv."""
        step = self._runner(model, state)
        if self.rule.remembers and state.memory is None:
            state.memory = torch.zeros_like(state.x)
        for i in range(self.steps):
            step_size = self.step_size * self.rule.size(i, self.steps)
            logits, values, moved, *memory = step(
                state.x_adv, state.x, state.memory, self.eps, step_size, *self._others(state))
            fools = None if best is None else best.update(state, logits, values)
            state.x_adv, state.memory = moved, memory[0] if memory else None
            if self.early_stop and fools is not None and len(rows := (~fools).nonzero().flatten()) < len(state):
                if not len(rows):
                    return
                state = state.take(rows)
        if best is not None:
            logits = logits_without_autocast(model, state.x_adv)
            best.update(state, logits, self._slope(logits, self._others(state))[0], exact=True)

    def _runner(self, model: nn.Module, state: AttackState) -> Callable[..., Step]:
        """What runs a step: a CUDA graph on a GPU, or Python."""
        graphs = graphs_of(model, state.x) if self.capture == 'auto' else None
        if graphs is None:
            return functools.partial(self._step, model)
        graphs.begin_attack(model)
        key = self.mode, self.norm, self.step_rule, self._value
        step = functools.partial(self._step, graphs.forward(model))
        return lambda *values: graphs.run(key, model, step, values, independent=self.mode == 'eval')

    def _step(
            self, model: Callable[[Tensor], Tensor], x_adv: Tensor, x: Tensor, memory: Tensor | None, eps: Number,
            step_size: Number, *others: Tensor,
    ) -> Step:
        """One step: gradient of the loss, direction, step, projection."""
        x_adv = x_adv.detach().requires_grad_()
        logits = check_logits(model(x_adv), len(x), differentiable=True)
        values, slope = self._slope(logits, others)
        (gradient,) = torch.autograd.grad(logits, x_adv, slope)
        direction = self.rule.follow(memory, gradient.nan_to_num(0.))
        moved = self.ball.project(self.ball.step(x_adv.detach(), direction, step_size), x, eps)
        return (logits.detach(), values, moved, *([direction] if self.rule.remembers else []))

    def _slope(self, logits: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Loss of each image (B,), and its gradient for the logits, `scaled`."""
        wide = logits.detach().to(compute_dtype(logits.dtype)).requires_grad_()
        with torch.enable_grad():
            values = self._value(wide, *others)
            if values.shape != logits.shape[:1]:
                raise ValueError(
                    f'the loss returns a tensor of shape {tuple(values.shape)}; expected ({len(logits)},).')
            # the sum, not the mean: the gradient of an image must not depend on the size of the batch
            (slope,) = torch.autograd.grad(values.sum(), wide)
        return values.detach(), scaled(slope, logits.dtype)

    def _others(self, state: AttackState) -> list[Tensor]:
        return [getattr(state, name) for name in self._compared_with]  # what the loss compares the logits with


class FGSM(PGD):
    """FGSM of Goodfellow et al. (arXiv 1412.6572): `PGD` with one step of length eps from the clean image."""

    def __init__(self, *, eps: Eps, norm: str = 'linf', loss: str | Loss = 'ce', mode: str = 'eval') -> None:
        super().__init__(eps=eps, step_size=eps, steps=1, norm=norm, loss=loss, random_start=False, mode=mode)
