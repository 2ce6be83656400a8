"""Progress reports of AutoAttack with an estimate of the time left."""
import time
from collections.abc import Callable, Sequence
from typing import Any

from timm_paf.attacks.autoattack_model import AutoAttackModel

__all__ = ['Progress', 'ProgressEstimator', 'passes_per_image']

Progress = Callable[[str, int, int, int, float], None]
_INTERVAL = 0.5  # seconds between two reports inside a batch


def passes_per_image(adversary: Any, component: str, classes: int) -> int:
    """Forward and backward passes of a component of `pyautoattack.AutoAttack` for an image that stays robust."""
    apgd, targeted, fab, square = adversary.apgd, adversary.apgd_targeted, adversary.fab, adversary.square
    untargeted = apgd.n_restarts * (apgd.n_iter_orig + 1) * 2 * apgd.eot_iter
    return {
        'apgd-ce': untargeted,
        'apgd-dlr': untargeted,
        'apgd-t': targeted.n_target_classes * targeted.n_restarts * (targeted.n_iter_orig + 1) * 2,
        'fab': fab.n_restarts * fab.n_iter * (2 + classes),
        'fab-t': fab.n_target_classes * fab.n_iter * 3,
        'square': square.n_restarts * square.n_queries,
    }[component]


class ProgressEstimator:
    """Calls `progress`, see `autoattack`, after every batch, and inside a batch twice a second.

    The estimate assumes that every robust image stays robust and that the speed so far continues. So it is too long
    until the first component has broken the easy images. `costs` are the `passes_per_image` of the components in order;
    the model counts its passes.
    """

    def __init__(
            self, progress: Progress | None, costs: Sequence[int], model: AutoAttackModel, processes: int = 1) -> None:
        self.progress, self.costs, self.model, self.processes = progress, costs, model, processes
        self._seconds = self._work = 0.  # time and passes of the finished batches of this process
        self._batch = 0  # size of the batch under attack
        self._reported = -_INTERVAL
        model.on_forward = self._inside_batch

    def start_component(self, index: int, name: str, images: int, robust: int) -> None:
        """A component starts: this process attacks `images` of the `robust` ones."""
        self._index, self._name, self._images, self._robust, self._done = index, name, images, robust, 0

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
        left = (self._images - self._done) * self.costs[self._index] - work
        left += sum(self.costs[self._index + 1:]) * self._robust / self.processes
        work += self._work
        rate = (self._seconds + seconds) / work if work else float('nan')
        self.progress(self._name, self._done, self._images, self._robust, left * rate if left else 0.)
