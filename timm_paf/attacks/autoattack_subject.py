"""The model as pyautoattack expects one, and what has to hold before and while it is attacked."""
import logging
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from timm_paf.attacks.state import eval_mode

__all__ = ['Subject', 'Warnings', 'check_images', 'global_state_kept', 'model_dtype']


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype in which a model takes its images: that of its first weight of two or more axes, else float32."""
    return next((p.dtype for p in model.parameters() if p.dim() > 1 and p.is_floating_point()), torch.float32)


class Subject(nn.Module):
    """A model for the package: contiguous float32 images in, float32 logits and contiguous gradients out.

    The package views gradients as matrices, writes into logits and picks several of them, all of which fails with
    other memory formats or dtypes.

    Args:
        model: Maps images to logits (B, classes), in eval mode.
        classes: Number of logits.
        amp_dtype: Run the model under autocast of this dtype inside `mixed`.

    Attributes:
        forwards: Images passed through the model so far.
        backwards: Images for which a gradient was asked so far.
        on_pass: Called after every pass.
    """

    def __init__(self, model: nn.Module, *, classes: int, amp_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self.classes = classes
        self.dtype = model_dtype(model)
        self.amp_dtype = amp_dtype
        self.forwards = self.backwards = 0
        self.on_pass: Callable[[], None] = lambda: None
        self._mixed = False
        self._finite: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not len(x):
            return x.new_zeros(0, self.classes)
        self.forwards += len(x)
        if x.requires_grad and torch.is_grad_enabled():
            self.backwards += len(x)
            x = x.view_as(x)
            x.register_hook(lambda gradient: gradient.contiguous())
        amp = torch.autocast(x.device.type, dtype=self.amp_dtype) if self._mixed else nullcontext()
        with amp:
            logits = self.model(x.to(self.dtype)).float()
        finite = logits.detach().isfinite().all()  # stays on the device: nobody waits for it here
        self._finite = finite if self._finite is None else self._finite & finite
        self.on_pass()
        return logits

    @contextmanager
    def mixed(self) -> Iterator[None]:
        """Passes under autocast, if a dtype was given for it."""
        self._mixed = self.amp_dtype is not None
        try:
            yield
        finally:
            self._mixed = False

    def all_finite(self) -> bool:
        """Whether every logit since the last call was finite."""
        finite = self._finite is None or bool(self._finite)
        self._finite = None
        return finite

    def minds_its_own_images(self, x: Tensor) -> bool:
        """Whether an image's logits are the same without the others of its batch, up to rounding.

        They are not in a model that is random or that takes statistics over the batch.
        """
        if len(x) < 2:
            return True
        half = len(x) // 2
        with torch.no_grad():
            whole, part = self(x)[half:], self(x[half:])
        allowed = rounding(self.dtype) * float(whole.abs().max())
        return bool((whole - part).abs().max() <= allowed)


def rounding(dtype: torch.dtype) -> float:
    """A bound on what rounding does to logits, relative to the largest: generous, for deep networks."""
    return {torch.bfloat16: 0.05, torch.float16: 0.01}.get(dtype, 1e-3)


class Warnings(logging.Handler):
    """Collects what the package warns of, each sentence once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self.logger = logging.Logger('timm_paf.autoattack')  # not in the tree of loggers: nothing is printed
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.add(record.getMessage())

    def add(self, *messages: str) -> None:
        """Take up sentences that are not there yet."""
        self.messages += [m for m in dict.fromkeys(messages) if m not in self.messages]


@contextmanager
def global_state_kept(device: torch.device) -> Iterator[None]:
    """Random generators, tracer and the package's call counter, as they were; the counter begins at zero inside.

    The package seeds the generators of the CPU and of every GPU.
    """
    from pyautoattack import checks
    trace, state, counted = sys.gettrace(), random.getstate(), dict(checks.funcs)
    cuda = device.type == 'cuda' or torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if cuda else []
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(state)
        sys.settrace(trace)
        checks.funcs.update(counted)


def check_pixels(x: Tensor) -> None:
    """Raise ValueError if images leave [0, 1] or are NaN."""
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f'images lie in [{low:g}, {high:g}]; expected [0, 1]. Put the normalisation inside the model, and divide '
            'uint8 images by 255.')


def check_images(model: nn.Module, x: Tensor, y: Tensor, *, device: torch.device) -> int:
    """See that images, labels and logits are what an evaluation can be made of.

    Args:
        model: Maps images to logits.
        x: Images (N, C, H, W), floating-point, in [0, 1].
        y: Labels (N,), int64.
        device: Where the model is.

    Returns:
        The number of classes.

    Raises:
        ValueError: If images leave [0, 1], counts or labels do not fit, or logits are not finite or not (B, K).
    """
    if not x.is_floating_point() or x.dim() < 2 or not len(x):
        raise ValueError(f'x is a {x.dtype} tensor of shape {tuple(x.shape)}; expected images (N, C, H, W) as floats.')
    if y.shape != x.shape[:1]:
        raise ValueError(f'y has shape {tuple(y.shape)}; expected one label for each of {len(x)} images.')
    check_pixels(x)
    with eval_mode(model), torch.no_grad():
        logits = model(x[:2].to(device, model_dtype(model)))
    if logits.dim() != 2 or len(logits) != len(x[:2]):
        raise ValueError(f'the model returns a tensor of shape {tuple(logits.shape)}; expected logits (B, classes).')
    if not logits.isfinite().all():
        raise ValueError('the model returns NaN or infinite logits on clean images; was it trained to the end?')
    classes = logits.shape[1]
    if y.dtype != torch.int64 or int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(
            f'labels are {y.dtype} from {int(y.min())} to {int(y.max())}; expected int64 from 0 to {classes - 1}.')
    return classes
