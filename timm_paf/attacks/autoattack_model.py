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
    """

    def __init__(self, model: nn.Module, *, classes: int) -> None:
        super().__init__()
        self.model, self.classes, self.dtype = model, classes, input_dtype(model)
        self.forwards = self.backwards = 0  # images passed through the model, and images with a gradient
        self.on_forward: Callable[[], None] = lambda: None  # called after every forward pass
        self.autocast: torch.dtype | None = None  # dtype of autocast around the model
        self._finite: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad and torch.is_grad_enabled():
            self.backwards += len(x)
            x = x.view_as(x)
            x.register_hook(lambda gradient: gradient.contiguous())
        with nullcontext() if self.autocast is None else torch.autocast(x.device.type, dtype=self.autocast):
            logits = self.model(x.to(self.dtype)).float()
        finite = logits.detach().isfinite().all()  # stays on the device, so that nothing waits for it here
        self._finite = finite if self._finite is None else self._finite & finite
        self.on_forward()
        return logits

    def all_finite(self) -> bool:
        """Whether all logits since the last call were finite."""
        finite, self._finite = self._finite, None
        return finite is None or bool(finite)


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
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else []):
            yield
    finally:
        random.setstate(state)
        sys.settrace(trace)
        checks.funcs.update(counts)
