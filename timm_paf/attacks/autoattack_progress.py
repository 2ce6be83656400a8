"""How far AutoAttack is, and how long the rest may take."""
import time
from collections.abc import Callable, Sequence
from typing import Any

from timm_paf.attacks.autoattack_subject import Subject

__all__ = ['Pace', 'Progress', 'passes_per_image']

Progress = Callable[[str, int, int, int, float], None]
_INTERVAL = 0.5  # seconds between two reports from inside a batch


def passes_per_image(adversary: Any, component: str, classes: int) -> int:
    """Forward and backward passes that an image costs which stands to the end of a component.

    Args:
        adversary: A `pyautoattack.AutoAttack`.
        component: Name of the component.
        classes: Number of classes.
    """
    apgd, targeted, fab = adversary.apgd, adversary.apgd_targeted, adversary.fab
    return {
        'apgd-ce': apgd.n_restarts * (apgd.n_iter_orig + 1) * 2 * apgd.eot_iter,
        'apgd-dlr': apgd.n_restarts * (apgd.n_iter_orig + 1) * 2 * apgd.eot_iter,
        'apgd-t': targeted.n_target_classes * targeted.n_restarts * (targeted.n_iter_orig + 1) * 2,
        'fab': fab.n_restarts * fab.n_iter * (2 + classes),
        'fab-t': fab.n_target_classes * fab.n_iter * 3,
        'square': adversary.square.n_restarts * adversary.square.n_queries,
    }[component]


class Pace:
    """Calls a progress function after batches, and inside of them as the time allows.

    The time left supposes that every image that stands now stands to the end, at the pace so far; so it is rather too
    long, until the first component has removed what falls easily.

    Args:
        progress: Called as progress(component, images done, images in all, images standing, seconds left).
        costs: Passes an image for each component, in order.
        subject: The model, which counts its passes.
        ranks: Processes that share the batches.
    """

    def __init__(self, progress: Progress | None, costs: Sequence[int], subject: Subject, ranks: int = 1) -> None:
        self.progress = progress
        self.costs = costs
        self.subject = subject
        self.ranks = ranks
        self.spent = 0.  # seconds of attacking in this process, and the work that they did
        self.worked = 0.
        self.told = -_INTERVAL
        subject.on_pass = self._within

    def component(self, index: int, name: str, images: int, standing: int) -> None:
        """A component begins; `images` of it are this process's."""
        self.index, self.name, self.images, self.standing = index, name, images, standing
        self.done = 0
        self.size = 0

    def begin(self, size: int) -> None:
        """A batch begins."""
        self.size = size
        self.started = time.monotonic()
        self.before = self.subject.forwards + self.subject.backwards

    def end(self, size: int, broken: int, attacked: bool) -> None:
        """A batch is finished, by attacking it here or because it was before."""
        if attacked:
            self.spent += time.monotonic() - self.started
            self.worked += size * self.costs[self.index]
        self.size = 0
        self.done += size
        self.standing -= broken
        self._tell(0., 0.)

    def _within(self) -> None:
        now = time.monotonic()
        if self.progress is None or not self.size or now - self.told < _INTERVAL:
            return
        work = self.subject.forwards + self.subject.backwards - self.before
        self._tell(now - self.started, min(work, self.size * self.costs[self.index]))

    def _tell(self, seconds: float, work: float) -> None:
        if self.progress is None:
            return
        self.told = time.monotonic()
        left = (self.images - self.done) * self.costs[self.index] - work
        left += sum(self.costs[self.index + 1:]) * self.standing / self.ranks
        worked = self.worked + work
        self.progress(
            self.name, self.done, self.images, self.standing,
            0. if not left else left * (self.spent + seconds) / worked if worked else float('nan'))
