"""Adapter between a model and the package pyautoattack, protection from the package's side effects, and progress."""
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from timm_paf.attacks.capture import ModelGraphs, graphs_of
from timm_paf.attacks.checks import input_dtype

__all__ = [
    'AutoAttackModel', 'Expected', 'Progress', 'ProgressEstimator', 'WarningLog', 'passes_per_image', 'restore_globals']

Progress = Callable[[str, int, int, int, float], None]
_INTERVAL = 0.5  # seconds between two reports inside a batch


class AutoAttackModel(nn.Module):
    """A model as pyautoattack expects it: contiguous float32 images in, float32 logits and contiguous gradients out."""

    def __init__(self, model: nn.Module, *, classes: int, capture: str = 'auto') -> None:
        super().__init__()
        self.capture = capture
        self.model, self.classes, self.dtype = model, classes, input_dtype(model)
        self.forwards = self.backwards = 0  # images passed through the model, and images with a gradient
        self.on_forward: Callable[[], None] = lambda: None  # called after every forward pass
        self.autocast: torch.dtype | None = None  # dtype of autocast around the model
        self._finite: Tensor | None = None
        self._prepared_for: tuple[torch.dtype | None, ...] = ()
        self._graphs: ModelGraphs | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad and torch.is_grad_enabled():
            self.backwards += len(x)
            x = x.view_as(x)
            x.register_hook(lambda gradient: gradient.contiguous())
        with nullcontext() if self.autocast is None else torch.autocast(x.device.type, dtype=self.autocast):
            logits = self._logits(x.to(self.dtype)).float()
        finite = logits.detach().isfinite().all()  # stays on the device, so that nothing waits for it here
        self._finite = finite if self._finite is None else self._finite & finite
        self.on_forward()
        return logits

    def _logits(self, x: Tensor) -> Tensor:
        if self._prepared_for != (self.autocast,):  # nothing else of the model changes while the attack runs
            self._prepared_for = (self.autocast,)
            self._graphs = graphs_of(self.model, x) if self.capture == 'auto' else None
            if self._graphs is not None:
                self._graphs.begin_attack(self.model)
        return self.model(x) if self._graphs is None else self._graphs.logits(self.model, x)

    def all_finite(self) -> bool:
        """Whether all logits since the last call were finite."""
        finite, self._finite = self._finite, None
        return finite is None or bool(finite)


class WarningLog(logging.Logger):
    """Collects warnings, each sentence once: those that the package logs here, and our own. Prints nothing."""

    def __init__(self) -> None:
        super().__init__('timm_paf.autoattack', logging.WARNING)
        self.messages: list[str] = []

    def handle(self, record: logging.LogRecord) -> None:
        self.add(record.getMessage())

    def add(self, *messages: str) -> None:
        """Add sentences that are new."""
        self.messages += [m for m in dict.fromkeys(messages) if m not in self.messages]


@contextmanager
def restore_globals(device: torch.device) -> Iterator[None]:
    """Restore what the package changes: all random generators, the tracer and its counter of calls, 0 at the start."""
    from pyautoattack import checks
    trace, state, counts = sys.gettrace(), random.getstate(), dict(checks.funcs)
    cuda = device.type == 'cuda' or torch.cuda.is_initialized()
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else []):
            yield
    finally:
        random.setstate(state)
        sys.settrace(trace)
        checks.funcs.update(counts)


def passes_per_image(adversary: Any, component: str, classes: int) -> int:
    """Forward and backward passes of a component of `pyautoattack.AutoAttack` for an image that stays robust."""
    apgd, targeted, fab, square = adversary.apgd, adversary.apgd_targeted, adversary.fab, adversary.square
    if component in ('apgd-ce', 'apgd-dlr'):
        return apgd.n_restarts * (apgd.n_iter_orig + 1) * 2 * apgd.eot_iter
    return {
        'apgd-t': targeted.n_target_classes * targeted.n_restarts * (targeted.n_iter_orig + 1) * 2,
        'fab': fab.n_restarts * fab.n_iter * (2 + classes),
        'fab-t': fab.n_target_classes * fab.n_iter * 3,
        'square': square.n_restarts * square.n_queries,
    }[component]


class Expected(NamedTuple):
    """What another attack has found on the same images, from which the time of AutoAttack is estimated."""
    robust: float  #: Share of the correctly classified images that are robust.
    seconds: float  #: Time that its passes took.
    passes: float  #: Number of images passed forward plus number passed backward.


class ProgressEstimator:
    """Calls `progress`, see `autoattack`, after every batch, and inside a batch twice a second.

    The estimate assumes that the speed so far continues, that the first component breaks the share of images that it
    has broken so far, or before its first batch the expected one, and that the others break none.
    """

    def __init__(
            self, progress: Progress | None, adversary: Any, components: Sequence[str], model: AutoAttackModel,
            processes: int, expected: Expected | None = None) -> None:
        self.progress, self.model, self.processes = progress, model, processes
        self.costs = [passes_per_image(adversary, name, model.classes) for name in components]
        self._expected = expected or Expected(1., 0., 0.)
        self._seconds, self._work = self._expected.seconds, self._expected.passes  # of finished batches
        self._batch = 0  # size of the batch under attack
        self._reported = -_INTERVAL
        model.on_forward = self._inside_batch

    def start_component(self, index: int, name: str, images: int, robust: int) -> None:
        """A component starts: this process attacks `images` of the `robust` ones."""
        self._index, self._name, self._images, self._done = index, name, images, 0
        self._robust = self._start_robust = robust

    def start_batch(self, size: int) -> None:
        """The attack on a batch starts."""
        self._batch, self._started, self._passes = size, time.monotonic(), self.model.forwards + self.model.backwards

    def end_batch(self, size: int, broken: int) -> None:
        """A batch is finished: after an attack, or because its result was read from the state."""
        if self._batch:
            self._seconds += time.monotonic() - self._started
            self._work += size * self.costs[self._index]
        self._batch = 0
        self._done += size
        self._robust -= broken
        self._report()

    def _inside_batch(self) -> None:
        now = time.monotonic()
        if self._batch and now - self._reported >= _INTERVAL:
            passes = self.model.forwards + self.model.backwards - self._passes
            self._report(now - self._started, min(passes, self._batch * self.costs[self._index]))

    def _report(self, seconds: float = 0., work: float = 0.) -> None:
        """Report, with the time and passes spent inside the current batch."""
        if self.progress is None:
            return
        self._reported = time.monotonic()
        attacked, robust = self._images - self._done, float(self._robust)
        left = attacked * self.costs[self._index] - work
        if self._index == 0:  # images that this process has not attacked yet may be broken by the first component
            found = self._robust - self._start_robust + self._done  # robust ones among those attacked
            share = found / self._done if self._done else self._expected.robust
            robust -= attacked * self.processes * (1 - share)
        left += sum(self.costs[self._index + 1:]) * max(robust, 0.) / self.processes
        work += self._work
        rate = (self._seconds + seconds) / work if work else float('nan')
        self.progress(self._name, self._done, self._images, self._robust, left * rate if left else 0.)
