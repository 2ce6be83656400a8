"""A robustness report: what was measured, on what, under what, with what."""
import dataclasses
import json
import os
import platform
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib import metadata
from typing import TYPE_CHECKING, Any, Optional

from rich.table import Table
from rich.text import Text
from torch import Tensor

from timm_paf._files import file_sha256, whole_file

if TYPE_CHECKING:
    from timm_paf.evaluation.corruptions import CorruptionReport
    from timm_paf.evaluation.curves import ClassAccuracy, RobustnessCurve
    from timm_paf.evaluation.examples import Example
    from timm_paf.evaluation.trust import TrustReport

__all__ = ['Accuracy', 'Measurement', 'RobustnessReport', 'file_sha256', 'library_versions']


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Counts of images.

    Args:
        correct: Classified correctly.
        total: Looked at; at least 1.
    """
    correct: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total or self.total < 1:
            raise ValueError(f'{self.correct} correct of {self.total}: expected 0 <= correct <= total, total >= 1.')

    @classmethod
    def of(cls, verdicts: Tensor) -> 'Accuracy':
        """Counts of verdicts (N,) bool."""
        return cls(int(verdicts.sum()), len(verdicts))

    @property
    def percent(self) -> float:
        """The share in percent, for printing."""
        return 100 * self.correct / self.total

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's interval of the share that more images like these would give, in [0, 1].

        Args:
            confidence: How often such an interval holds the true share, between 0 and 1.

        Raises:
            ValueError: If it is not.

        Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
        """
        from scipy.stats import binomtest
        if not 0 < confidence < 1:
            raise ValueError(f'confidence = {confidence}: expected a number between 0 and 1, such as 0.95.')
        low, high = binomtest(self.correct, self.total).proportion_ci(confidence, method='wilson')
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """The integers, and the 95 % interval as shares."""
        return {'correct': self.correct, 'total': self.total, 'interval': [round(end, 6) for end in self.interval()]}

    def __str__(self) -> str:
        low, high = (100 * end for end in self.interval())
        return f'{self.percent:.1f} % [{low:.1f}, {high:.1f}], {self.correct} / {self.total}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One accuracy and the attack that it was measured under.

    Args:
        accuracy: The counts.
        attack: Name and strength, e.g. 'PGD-20', or 'none'.
        norm: Norm of the ball; None without an attack.
        eps: Radius as it was written; None without an attack.
        eps_value: Radius as a number.
        steps: Gradient steps, where the attack has a number of them.
        seed: Seed of the attack.
        seconds: Time it took.
        details: More about the attack, plain values only.
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
        """Plain values; `correct` and `total` are integers on the first level."""
        plain = ('attack', 'norm', 'eps', 'eps_value', 'steps', 'seed', 'seconds')
        known = {name: getattr(self, name) for name in plain if getattr(self, name) is not None}
        return {**self.accuracy.to_dict(), **known, **self.details}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustnessReport:
    """What `evaluate_robustness` found.

    Args:
        measurements: By name: 'clean', 'pgd', 'autoattack', 'worst_case'.
        model: Name of the model.
        dataset: Name of the data set.
        split: Part of the data set.
        checkpoint: File the weights came from.
        checkpoint_sha256: Its hash.
        by_class: Accuracy for each class: clean, and under all attacks that an image was given.
        trust: Signs of a false number that were looked for.
        curve: Robust accuracy over the radius.
        corruptions: Accuracy under common corruptions.
        examples: Images and what the attack made of them, for the page; not written to JSON.
        versions: Of Python, this package and the libraries under it.
        created: Time in UTC, ISO 8601.
    """
    measurements: dict[str, Measurement]
    model: str | None = None
    dataset: str | None = None
    split: str | None = None
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    by_class: tuple['ClassAccuracy', ...] = ()
    trust: Optional['TrustReport'] = None
    curve: Optional['RobustnessCurve'] = None
    corruptions: Optional['CorruptionReport'] = None
    examples: tuple['Example', ...] = ()
    versions: dict[str, str] = dataclasses.field(default_factory=lambda: library_versions())
    created: str = dataclasses.field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec='seconds'))

    def to_dict(self) -> dict[str, Any]:
        """Plain values with one entry a measurement, and one for each further part that was measured."""
        parts = {name: getattr(self, name) for name in ('trust', 'curve', 'corruptions')}
        plain = ('model', 'dataset', 'split', 'checkpoint', 'checkpoint_sha256', 'versions', 'created')
        return {
            **{name: measurement.to_dict() for name, measurement in self.measurements.items()},
            **{name: getattr(self, name) for name in plain},
            **({'by_class': [entry.to_dict() for entry in self.by_class]} if self.by_class else {}),
            **{name: part.to_dict() for name, part in parts.items() if part is not None}}

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON, whole or not at all."""
        text = json.dumps(self.to_dict(), indent=2) + '\n'
        with whole_file(path) as file:
            file.write(text.encode())

    def save_page(self, path: str | os.PathLike) -> None:
        """Write the report as one HTML file that needs no other, whole or not at all."""
        from timm_paf.evaluation.page import report_page  # which knows the parts of this class
        text = report_page(self)
        with whole_file(path) as file:
            file.write(text.encode())

    def table(self) -> Table:
        """The accuracies for a terminal, with 95 % intervals."""
        table = Table(title=' · '.join(filter(None, (self.model, self.dataset, self.split))) or None)
        table.add_column('attack')
        table.add_column('eps', justify='right')
        table.add_column('accuracy', justify='right')
        table.add_column('95 % interval', justify='right')
        table.add_column('correct / images attacked', justify='right')
        for attack, ball, accuracy in self._rows():
            low, high = (100 * end for end in accuracy.interval())
            table.add_row(
                attack, ball, f'{accuracy.percent:.1f} %', f'{low:.1f} to {high:.1f}',
                f'{accuracy.correct} / {accuracy.total}')
        return table

    def trust_table(self) -> Table | None:
        """The trust checks for a terminal; None if there were none."""
        if self.trust is None:
            return None
        table = Table(title='trust checks', caption=self.trust.cost)
        for column in ('', 'check', 'found'):
            table.add_column(column)
        styles = {'pass': 'green', 'warn': 'bold red', 'skip': 'dim'}
        for check in self.trust.checks:
            style = styles[check.status]
            found = Text(check.finding)
            if check.status == 'warn':  # what passes needs no explanation here; the page gives it
                found.append(f' {check.meaning}', style)
            table.add_row(Text(check.status, style), Text(check.name), found)
        return table

    def _rows(self) -> Iterator[tuple[str, str, Accuracy]]:
        for m in self.measurements.values():
            yield m.attack, f'{m.norm} {m.eps}' if m.eps else '', m.accuracy
        if self.curve is not None:
            for point in self.curve.points:
                attack = f'{self.curve.attack}, this and smaller eps' if point.eps_value else 'none'
                yield attack, f'{self.curve.norm} {point.eps}', point.worst
        if self.corruptions is not None:
            yield f'{len(self.corruptions.averaged)} corruptions, 5 severities', '', self.corruptions.mean


def library_versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that a result depends on."""
    versions = {'python': platform.python_version()}
    for name in ('timm-paf', 'torch', 'torchvision', 'timm', 'pyautoattack'):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            from timm_paf._version import __version__
            versions[name] = __version__ if name == 'timm-paf' else 'unknown'
    return versions
