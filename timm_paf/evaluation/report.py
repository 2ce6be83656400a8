"""The robustness report: measurements with their settings, as report.json, report.html and terminal tables."""
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Any

from rich.table import Table
from rich.text import Text

from timm_paf._files import whole_file
from timm_paf._versions import library_versions
from timm_paf.evaluation.accuracy import Accuracy, Measurement
from timm_paf.evaluation.corruptions import CorruptionReport
from timm_paf.evaluation.curves import ClassAccuracy, RobustnessCurve
from timm_paf.evaluation.examples import Example
from timm_paf.evaluation.page import Section, render
from timm_paf.evaluation.trust import TrustReport

__all__ = ['RobustnessReport']


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustnessReport:
    """Result of `evaluate_robustness`, with further measurements if they were made.

    Args:
        measurements: By name: 'clean', 'pgd', 'autoattack', 'worst_case'.
        model: Name of the model.
        dataset: Name of the data set.
        split: Split of the data set.
        checkpoint: File of the weights.
        checkpoint_sha256: SHA-256 of that file.
        by_class: Accuracy per class: clean, and under all attacks that were run on an image.
        trust: Trust checks.
        curve: Robust accuracy by eps.
        corruptions: Accuracy under common corruptions.
        examples: Images with their attacked versions, for the page; not in the JSON file.
        versions: Versions of Python, this package and the libraries under it.
        created: Time in UTC, ISO 8601.
    """
    measurements: dict[str, Measurement]
    model: str | None = None
    dataset: str | None = None
    split: str | None = None
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    by_class: tuple[ClassAccuracy, ...] = ()
    trust: TrustReport | None = None
    curve: RobustnessCurve | None = None
    corruptions: CorruptionReport | None = None
    examples: tuple[Example, ...] = ()
    versions: dict[str, str] = dataclasses.field(default_factory=library_versions)
    created: str = dataclasses.field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec='seconds'))

    def to_dict(self) -> dict[str, Any]:
        """Content of report.json: plain values, with one entry per measurement and per further part."""
        parts = {name: getattr(self, name) for name in ('trust', 'curve', 'corruptions')}
        plain = ('model', 'dataset', 'split', 'checkpoint', 'checkpoint_sha256', 'versions', 'created')
        return {
            **{name: measurement.to_dict() for name, measurement in self.measurements.items()},
            **{name: getattr(self, name) for name in plain},
            **({'by_class': [entry.to_dict() for entry in self.by_class]} if self.by_class else {}),
            **{name: part.to_dict() for name, part in parts.items() if part is not None}}

    def save(self, path: str | os.PathLike) -> None:
        """Write report.json; an interrupted write leaves the old file."""
        text = json.dumps(self.to_dict(), indent=2) + '\n'
        with whole_file(path) as file:
            file.write(text.encode())

    def page(self, *, title: str = '', subtitle: str = '', sections: Iterable[Section] = ()) -> str:
        """Text of report.html, a page that needs no other file.

        Args:
            title: Heading; 'Robustness of' the model by default.
            subtitle: Line under the heading; data set, split and time by default.
            sections: Further sections, after the measurements.
        """
        facts = {
            'model': self.model, 'data set': self.dataset, 'split': self.split, 'checkpoint': self.checkpoint,
            'SHA-256 of the checkpoint': self.checkpoint_sha256, 'created': self.created, **self.versions}
        provenance = Section(
            title='Model, data and versions', header=('', ''), columns='sc',
            rows=[(name, value) for name, value in facts.items() if value is not None])
        return render(
            report=self, sections=[*sections, provenance], title=title or f'Robustness of {self.model or "a model"}',
            subtitle=subtitle or ' · '.join(filter(None, (self.dataset, self.split, self.created))))

    def save_page(self, path: str | os.PathLike) -> None:
        """Write report.html; an interrupted write leaves the old file."""
        text = self.page()
        with whole_file(path) as file:
            file.write(text.encode())

    def table(self) -> Table:
        """Accuracies for the terminal, with 95 % intervals."""
        table = Table(title=' · '.join(filter(None, (self.model, self.dataset, self.split))) or None)
        table.add_column('attack')
        for column in ('eps', 'accuracy', '95 % interval', 'correct / images'):
            table.add_column(column, justify='right')
        for attack, eps, accuracy in self._rows():
            table.add_row(
                attack, eps, f'{accuracy.percent:.1f} %', accuracy.interval_text,
                f'{accuracy.correct} / {accuracy.total}')
        return table

    def trust_table(self) -> Table | None:
        """Trust checks for the terminal; None if there are none."""
        if self.trust is None:
            return None
        table = Table('', 'check', 'finding', title='trust checks', caption=self.trust.cost)
        styles = {'pass': 'green', 'warn': 'bold red', 'skip': 'dim'}
        for check in self.trust.checks:
            style = styles[check.status]
            finding = Text(check.finding)
            if check.status == 'warn':  # the page explains the others
                finding.append(f' {check.meaning}', style)
            table.add_row(Text(check.status, style), Text(check.name), finding)
        return table

    def _rows(self) -> Iterator[tuple[str, str, Accuracy]]:
        for m in self.measurements.values():
            yield m.attack, f'{m.norm} {m.eps}' if m.eps else '', m.accuracy
        if self.curve is not None:
            for point in self.curve.points:
                attack = f'{self.curve.attack} at this or a smaller eps' if point.eps_value else 'none'
                yield attack, f'{self.curve.norm} {point.eps}', point.worst
        if self.corruptions is not None:
            yield f'{len(self.corruptions.averaged)} corruptions, 5 severities', '', self.corruptions.mean
