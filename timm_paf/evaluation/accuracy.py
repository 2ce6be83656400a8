"""Counts of correctly classified images, and the attack under which they were counted."""
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ['Accuracy', 'Measurement', 'Part']


@dataclass(frozen=True)
class Part:
    """A part of a report."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in report.json."""
        return {name: _plain(value) for name, value in vars(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Accuracy(Part):
    """Number of correctly classified images; ValueError if not 0 <= correct <= total, or total is 0."""
    correct: int  #: Correctly classified images.
    total: int  #: Classified images; at least 1.

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

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval for the accuracy on the population of images, in [0, 1].

        Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
        """
        from scipy.stats import binomtest  # takes a second to import
        low, high = binomtest(self.correct, self.total).proportion_ci(0.95, method='wilson')
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


@dataclass(frozen=True, kw_only=True)
class Measurement(Part):
    """An accuracy and the attack under which it was measured."""
    accuracy: Accuracy  #: The counts.
    attack: str  #: Name and strength, e.g. 'PGD-20', or 'none'.
    norm: str | None = None  #: Norm of the ball; None without an attack.
    eps: str | None = None  #: Radius as the user wrote it; None without an attack.
    eps_value: float | None = None  #: Radius as a number.
    steps: int | None = None  #: Number of gradient steps, for attacks that have one.
    seed: int | None = None  #: Seed of the attack.
    seconds: float | None = None  #: Duration.
    details: dict[str, Any] = field(default_factory=dict)  #: Further facts about the attack; plain values only.

    def to_dict(self) -> dict[str, Any]:
        """Plain values on one level, with `correct` and `total` as integers."""
        known = {
            name: value for name, value in vars(self).items()
            if value is not None and name not in ('accuracy', 'details')}
        return {**self.accuracy.to_dict(), **known, **self.details}
