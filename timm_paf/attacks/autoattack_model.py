"""Adapter between a model and the package pyautoattack, and protection from the package's side effects."""
import logging
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from timm_paf.attacks.checks import input_dtype

__all__ = ['AutoAttackModel', 'WarningLog', 'preserve_global_state']


class AutoAttackModel(nn.Module):
    """A model as pyautoattack expects it: contiguous float32 images in, float32 logits and contiguous gradients out.

    The package views gradients as matrices, writes into logits and selects from them, which fails with other memory
    formats or dtypes.

    Args:
        model: Maps images to logits (B, classes), in eval mode.
        classes: Number of classes.
        amp_dtype: Dtype of autocast inside `mixed_precision`; None for the model's own precision.

    Attributes:
        forwards: Images passed through the model so far.
        backwards: Images for which a gradient was requested so far.
        on_forward: Called after every forward pass.
    """

    def __init__(self, model: nn.Module, *, classes: int, amp_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self.classes = classes
        self.dtype = input_dtype(model)
        self.amp_dtype = amp_dtype
        self.forwards = self.backwards = 0
        self.on_forward: Callable[[], None] = lambda: None
        self._mixed = False
        self._finite: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad and torch.is_grad_enabled():
            self.backwards += len(x)
            x = x.view_as(x)
            x.register_hook(lambda gradient: gradient.contiguous())
        with torch.autocast(x.device.type, dtype=self.amp_dtype) if self._mixed else nullcontext():
            logits = self.model(x.to(self.dtype)).float()
        finite = logits.detach().isfinite().all()  # stays on the device, so that nothing waits for it here
        self._finite = finite if self._finite is None else self._finite & finite
        self.on_forward()
        return logits

    @contextmanager
    def mixed_precision(self) -> Iterator[None]:
        """Run the model under autocast inside, if it has an `amp_dtype`."""
        self._mixed = self.amp_dtype is not None
        try:
            yield
        finally:
            self._mixed = False

    def all_finite(self) -> bool:
        """Whether all logits since the last call were finite."""
        finite = self._finite is None or bool(self._finite)
        self._finite = None
        return finite


class WarningLog(logging.Handler):
    """Collects warnings, each sentence once: those that the package sends to `logger`, and our own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self.logger = logging.Logger('timm_paf.autoattack')  # outside the tree of loggers: nothing is printed
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.add(record.getMessage())

    def add(self, *messages: str) -> None:
        """Add sentences that are new."""
        self.messages += [m for m in dict.fromkeys(messages) if m not in self.messages]


@contextmanager
def preserve_global_state(device: torch.device) -> Iterator[None]:
    """Restore the random generators, the tracer and the package's counter of calls, which is 0 at the start.

    The package seeds the generators of the CPU and of every GPU, and ends a running tracer. A count left from one model
    would make it warn about the next one.
    """
    from pyautoattack import checks
    trace, state, counts = sys.gettrace(), random.getstate(), dict(checks.funcs)
    cuda = device.type == 'cuda' or torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if cuda else []
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(state)
        sys.settrace(trace)
        checks.funcs.update(counts)
