"""The robustness report: measurements with their settings, as report.json, report.html and terminal tables."""
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from rich.table import Table
from rich.text import Text

from timm_paf._files import write_text
from timm_paf._versions import library_versions
from timm_paf.evaluation.accuracy import Measurement, Part
from timm_paf.evaluation.correct import Example
from timm_paf.evaluation.corruptions import CorruptionReport
from timm_paf.evaluation.curves import ClassAccuracy, RobustnessCurve
from timm_paf.evaluation.page import Section, render
from timm_paf.evaluation.trust_checks import TrustReport

__all__ = ['RobustnessReport']


@dataclass(frozen=True, kw_only=True)
class RobustnessReport(Part):
    """Result of `evaluate_robustness`, with further measurements if they were made."""
    measurements: dict[str, Measurement]  #: Those called 'clean', 'pgd', 'autoattack', 'worst_case'.
    model: str | None = None  #: Name of the model.
    dataset: str | None = None  #: Name of the data set.
    split: str | None = None  #: Split of the data set.
    checkpoint: str | None = None  #: File of the weights.
    checkpoint_sha256: str | None = None  #: SHA-256 of that file.
    class_names: tuple[str, ...] = ()  #: Names of the classes, in the order of their numbers.
    by_class: tuple[ClassAccuracy, ...] = ()  #: Accuracy per class.
    warnings: tuple[str, ...] = ()  #: Why the accuracies may be wrong, one sentence each.
    trust: TrustReport | None = None  #: Trust checks.
    curve: RobustnessCurve | None = None  #: Robust accuracy by eps.
    corruptions: CorruptionReport | None = None  #: Accuracy under common corruptions.
    examples: tuple[Example, ...] = ()  #: Images with their attacked versions, for the page; not in the JSON file.
    versions: dict[str, str] = field(default_factory=library_versions)
    #: Time in UTC, ISO 8601.
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec='seconds'))

    def to_dict(self) -> dict[str, Any]:
        """Content of report.json: plain values, with one entry per measurement and per further part."""
        plain = super().to_dict()
        always = ('model', 'dataset', 'split', 'checkpoint', 'checkpoint_sha256', 'versions', 'created')
        measured = [
            name for name in ('class_names', 'warnings', 'by_class', 'trust', 'curve', 'corruptions') if plain[name]]
        return {**plain['measurements'], **{name: plain[name] for name in (*always, *measured)}}

    def page(self, *, title: str = '', subtitle: str = '', sections: Iterable[Section] = ()) -> str:
        """Text of report.html, a page that needs no other file; `sections` come after the measurements.

        The title is 'Robustness of' the model by default; the subtitle is data set, split and time.
        """
        facts = [
            ('model', self.model), ('data set', self.dataset), ('split', self.split), ('checkpoint', self.checkpoint),
            ('SHA-256 of the checkpoint', self.checkpoint_sha256), ('classes', ', '.join(self.class_names)),
            ('created', self.created), *self.versions.items()]
        provenance = Section(
            title='Model, data and versions', header=('', ''), columns='sc', rows=[fact for fact in facts if fact[1]],
            folded=True)
        return render(
            report=self, sections=[*sections, provenance], title=title or f'Robustness of {self.model or "a model"}',
            subtitle=subtitle or ' · '.join(filter(None, (self.dataset, self.split, self.created))))

    @property
    def headline(self) -> list[Measurement]:
        """The measurements to show first: clean, PGD, and the strongest attack."""
        found = [self.measurements[n] for n in ('clean', 'pgd', 'autoattack', 'worst_case') if n in self.measurements]
        return [*found[:2], *found[2:][-1:]]

    @property
    def attacks(self) -> str:
        """Names of the attacks that were run, with norm and eps; empty if none was."""
        attacks = [m for name, m in self.measurements.items() if m.norm and name != 'worst_case']
        return ' and '.join(m.attack for m in attacks) + f', {attacks[0].norm} eps {attacks[0].eps}' if attacks else ''

    def verdict(self) -> str:
        """What was found, in sentences: clean accuracy, accuracy under the strongest attack, trust checks."""
        clean, strongest, text = self.measurements.get('clean'), self.headline[-1:], ''
        if clean is not None:
            images = ' '.join(filter(None, (self.dataset, self.split, 'images')))
            found = clean.accuracy
            text = f'{self.model or "The model"} classifies {found.percent:.1f} % of {found.total} {images} correctly. '
        if self.attacks:
            found = strongest[0].accuracy
            text += (
                f'Under the strongest attack ({self.attacks}), it classifies {found.percent:.1f} % of {found.total} '
                f'images correctly (95 % interval {found.interval_text} %). ')
        if self.trust is None:
            return text + 'Trust checks were not run; the command validate runs them.'
        warned, checks = len(self.trust.warnings), len(self.trust.checks)
        return text + (f'{warned} of {checks} trust checks warn: the accuracy under attack may be too high.' if warned
                       else f'None of the {checks} trust checks warns.')

    @property
    def counts_note(self) -> str:
        """A sentence if the accuracies are of different numbers of images."""
        return 'Some accuracies are of the first images only; compare those of the same number of images.' if (
            len({m.accuracy.total for m in self.measurements.values()}) > 1) else ''

    def class_title(self, label: int) -> str:
        """Number of a class, with its name if it has one."""
        name = self.class_names[label] if self.class_names else str(label)
        return name if name == str(label) else f'{label} ({name})'

    def save(self, path: str | os.PathLike) -> None:
        """Write report.json; an interrupted write leaves the old file."""
        write_text(json.dumps(self.to_dict(), indent=2) + '\n', path)

    def save_page(self, path: str | os.PathLike) -> None:
        """Write report.html; an interrupted write leaves the old file."""
        write_text(self.page(), path)

    def table(self) -> Table:
        """Accuracies for the terminal, with 95 % intervals."""
        table = Table('attack', title=' · '.join(filter(None, (self.model, self.dataset, self.split))) or None)
        for column in ('eps', 'accuracy', '95 % interval', 'correct / images'):
            table.add_column(column, justify='right')
        rows = [(m.attack, f'{m.norm} {m.eps}' if m.eps else '', m.accuracy) for m in self.measurements.values()]
        if (curve := self.curve) is not None:
            name = f'{curve.attack} at this or a smaller eps'
            rows += [(name if p.eps_value else 'none', f'{curve.norm} {p.eps}', p.worst) for p in curve.points]
        if self.corruptions is not None:
            rows.append((f'{len(self.corruptions.averaged)} corruptions, 5 severities', '', self.corruptions.mean))
        for attack, eps, found in rows:
            table.add_row(
                attack, eps, f'{found.percent:.1f} %', found.interval_text, f'{found.correct} / {found.total}')
        warnings = '\n'.join(f'warning: {text}' for text in self.warnings)
        table.caption = Text('\n').join(filter(None, (Text(self.counts_note), Text(warnings, style='bold red'))))
        table.caption_justify = 'left'
        return table

    def trust_table(self) -> Table | None:
        """Trust checks for the terminal; None if there are none."""
        if self.trust is None:
            return None
        table = Table('', 'check', 'finding', title='trust checks', caption=self.trust.cost)
        for check in self.trust.checks:
            style = {'pass': 'green', 'warn': 'bold red', 'skip': 'dim'}[check.status]
            meaning = f' {check.meaning}' if check in self.trust.warnings else ''  # the page explains the others
            table.add_row(Text(check.status, style), Text(check.name), Text(check.finding).append(meaning, style))
        return table
