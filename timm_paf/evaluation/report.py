"""A robustness report: what was measured, on what, under what, with what."""
import dataclasses
import hashlib
import json
import math
import os
import platform
import tempfile
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Optional, Union

from rich.table import Table

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

    @property
    def percent(self) -> float:
        """The share in percent, for printing."""
        return 100 * self.correct / self.total

    def interval(self, z: float = 1.959964) -> tuple[float, float]:
        """Wilson's interval for the share, in [0, 1]; z = 1.96 for 95 %.

        Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
        """
        share, n = self.correct / self.total, self.total
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        return max(middle - half, 0.), min(middle + half, 1.)


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
    norm: Optional[str] = None
    eps: Optional[str] = None
    eps_value: Optional[float] = None
    steps: Optional[int] = None
    seed: Optional[int] = None
    seconds: Optional[float] = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `correct` and `total` are integers on the first level."""
        plain = ('attack', 'norm', 'eps', 'eps_value', 'steps', 'seed', 'seconds')
        known = {name: getattr(self, name) for name in plain if getattr(self, name) is not None}
        return {'correct': self.accuracy.correct, 'total': self.accuracy.total, **known, **self.details}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustnessReport:
    """What `evaluate_robustness` found.

    Args:
        measurements: By name: 'clean', 'pgd', 'autoattack'.
        model: Name of the model.
        dataset: Name of the data set.
        split: Part of the data set.
        checkpoint: File the weights came from.
        checkpoint_sha256: Its hash.
        versions: Of Python, this package and the libraries under it.
        created: Time in UTC, ISO 8601.
    """
    measurements: dict[str, Measurement]
    model: Optional[str] = None
    dataset: Optional[str] = None
    split: Optional[str] = None
    checkpoint: Optional[str] = None
    checkpoint_sha256: Optional[str] = None
    versions: dict[str, str] = dataclasses.field(default_factory=lambda: library_versions())
    created: str = dataclasses.field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec='seconds'))

    def to_dict(self) -> dict[str, Any]:
        """Plain values with one entry a measurement."""
        rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != 'measurements'}
        return {**{name: m.to_dict() for name, m in self.measurements.items()}, **rest}

    def save(self, path: Union[str, os.PathLike]) -> None:
        """Write JSON, whole or not at all."""
        path = Path(path)
        with tempfile.NamedTemporaryFile('w', dir=path.parent, prefix=path.name, suffix='.tmp', delete=False) as file:
            try:
                json.dump(self.to_dict(), file, indent=2)
                file.write('\n')
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise

    def table(self) -> Table:
        """The report for a terminal."""
        table = Table(title=' · '.join(filter(None, (self.model, self.dataset, self.split))) or None)
        table.add_column('attack')
        table.add_column('eps', justify='right')
        table.add_column('accuracy', justify='right')
        table.add_column('correct / images attacked', justify='right')
        for measurement in self.measurements.values():
            accuracy = measurement.accuracy
            table.add_row(
                measurement.attack, f'{measurement.norm} {measurement.eps}' if measurement.eps else '',
                f'{accuracy.percent:.1f} %', f'{accuracy.correct} / {accuracy.total}')
        return table


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


def file_sha256(path: Union[str, os.PathLike]) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()
