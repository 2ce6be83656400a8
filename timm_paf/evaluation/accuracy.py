"""Counts of correctly classified images, and the attack under which they were counted."""
import dataclasses
from typing import Any

from torch import Tensor

__all__ = ['Accuracy', 'Measurement']


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Number of correctly classified images.

    Args:
        correct: Correctly classified images.
        total: Classified images; at least 1.

    Raises:
        ValueError: If not 0 <= correct <= total, or total is 0.
    """
    correct: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total or self.total < 1:
            raise ValueError(f'{self.correct} correct of {self.total}: expected 0 <= correct <= total, total >= 1.')

    @classmethod
    def of(cls, correct: Tensor) -> 'Accuracy':
        """The counts of a correct mask, (N,) bool."""
        return cls(int(correct.sum()), len(correct))

    @property
    def percent(self) -> float:
        """Accuracy in percent."""
        return 100 * self.correct / self.total

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's confidence interval for the accuracy on the population of images, in [0, 1].

        Args:
            confidence: Probability that such an interval contains the true accuracy, between 0 and 1.

        Raises:
            ValueError: If confidence is not between 0 and 1.

        Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
        """
        from scipy.stats import binomtest  # takes a second to import
        if not 0 < confidence < 1:
            raise ValueError(f'confidence = {confidence}: expected a number between 0 and 1, such as 0.95.')
        low, high = binomtest(self.correct, self.total).proportion_ci(confidence, method='wilson')
        return float(low), float(high)

    @property
    def interval_text(self) -> str:
        """The 95 % interval in percent, as text."""
        low, high = self.interval()
        return f'{100 * low:.1f} to {100 * high:.1f}'

    def to_dict(self) -> dict[str, Any]:
        """The counts, and the 95 % interval as fractions."""
        return {'correct': self.correct, 'total': self.total, 'interval': [round(end, 6) for end in self.interval()]}

    def __str__(self) -> str:
        return f'{self.percent:.1f} % ({self.correct} of {self.total} images, 95 % interval {self.interval_text} %)'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """An accuracy and the attack under which it was measured.

    Args:
        accuracy: The counts.
        attack: Name and strength, e.g. 'PGD-20', or 'none'.
        norm: Norm of the ball; None without an attack.
        eps: Radius as the user wrote it; None without an attack.
        eps_value: Radius as a number.
        steps: Number of gradient steps, for attacks that have one.
        seed: Seed of the attack.
        seconds: Duration.
        details: Further facts about the attack; plain values only.
    """
    accuracy: Accuracy
    attack: str
    norm: str | None = None
    eps: str | None = None
    eps_value: float | None = None
    steps: int | None = None
    seed: int | None = None
    seconds: float | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values on one level, with `correct` and `total` as integers."""
        names = ('attack', 'norm', 'eps', 'eps_value', 'steps', 'seed', 'seconds')
        known = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {**self.accuracy.to_dict(), **known, **self.details}
